"""A process that holds nothing but one variant: its memory and CPU time are the variant's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any


class ProbeError(Exception):
    """The split does not fit the variant, or the measuring process failed; names what."""


class CleanProcess:
    """A fresh process for one variant, started ahead: it imports the engine and waits, with nothing loaded."""

    def __init__(self) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "serving.probe_resources"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONSAFEPATH": "1"},
        )

    def wait_ready(self) -> None:
        """Return when its imports are done (or it has died, which :meth:`run` tells)."""
        assert self._popen.stdout is not None
        self._popen.stdout.readline()

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """Have it answer its one request, :func:`serving.probe_resources.run`; its messages go to our stderr.

        Raises:
            ProbeError: it failed; ends with its last message.
        """
        said, messages = self._popen.communicate(json.dumps(request) + "\n")
        sys.stderr.write(messages)
        if self._popen.returncode != 0:
            last = (messages.strip().splitlines() or ["no message"])[-1]
            name = request["variant"]["name"]
            raise ProbeError(f"predicting with variant {name!r} failed (exit {self._popen.returncode}): {last}")
        result: dict[str, Any] = json.loads(said.splitlines()[-1])
        return result

    def close(self) -> None:
        """End it without a request."""
        self._popen.communicate()
