"""A process that answers requests: a JSON line each, in on its stdin, out on its stdout. Both sides of it.

The process says ``{"ready": true}`` when it has nothing left to compute: after its start and after each answer. An
answer is ``{"result": ...}``, or ``{"error": text}``, after which the process ends. It also ends when its stdin does,
and thus never outlives who asks, however that ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from typing import Any, Self

from model_registry.quiet import QUIET


class AnsweringFailed(Exception):
    """The process refused the request or died; says what it said."""


class AskedProcess:
    """``python -m module``, started at once. What it writes to stderr goes to ours.

    Args:
        module: calls :func:`answer_requests`; who asks need not be able to import it.
    """

    def __init__(self, module: str) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **QUIET},
        )
        self._ready = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait_ready(self) -> None:
        """Return when it has come to rest: it disturbs nothing that is measured.

        Raises:
            AnsweringFailed: it died.
        """
        if not self._ready:
            self._read()
            self._ready = True

    def ask(self, request: dict[str, Any]) -> Any:
        """Its result for the request, in JSON's types.

        Raises:
            AnsweringFailed: it refused the request, or died.
        """
        self.wait_ready()
        self._ready = False
        assert self._popen.stdin is not None
        try:
            self._popen.stdin.write(json.dumps(request) + "\n")
            self._popen.stdin.flush()
        except BrokenPipeError:
            pass  # it died: reading says so
        answer = self._read()
        if "error" in answer:
            raise AnsweringFailed(answer["error"])
        return answer["result"]

    def close(self) -> None:
        """End it, whatever it does."""
        self._popen.kill()
        self._popen.communicate()

    def _read(self) -> dict[str, Any]:
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        if not line:
            raise AnsweringFailed(f"its process died (exit code {self._popen.wait()}); its messages are above")
        message: dict[str, Any] = json.loads(line)
        return message


def answer_requests(answer: Callable[[dict[str, Any]], Any], *, come_to_rest: Callable[[], None] | None = None) -> None:
    """Answer what comes on stdin until it ends. Exit code 1 after an error: who knows what it left behind.

    Args:
        answer: from a request to its result, both JSON.
        come_to_rest: what is left to do before the next request.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer

    def say(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=answers, flush=True)

    def rest() -> None:
        if come_to_rest is not None:
            come_to_rest()
        say({"ready": True})

    rest()
    for line in sys.stdin:
        try:
            message = {"result": answer(json.loads(line))}
        except Exception as error:  # noqa: BLE001 - reported to who asks, where it is raised
            traceback.print_exc()
            say({"error": f"{type(error).__name__}: {error}"})
            sys.exit(1)
        say(message)
        rest()
