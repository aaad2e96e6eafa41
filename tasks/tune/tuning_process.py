"""``python -m serving.tuning``, which no task imports, asked once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from tasks.errors import ChildFailed


def ask_tuning(request: dict[str, Any], progress: Callable[[float, str], None]) -> dict[str, Any]:
    """The fields of :class:`serving.tuning_request.TuningResult` for those of a ``TuningRequest``.

    The process is in our process group, so that it ends with us.

    Raises:
        ChildFailed: it refuses the request or died; says what it said.
    """
    name = request["variant"]["name"]
    with subprocess.Popen(
        [sys.executable, "-m", "serving.tuning"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
    ) as popen:
        assert popen.stdin is not None and popen.stdout is not None
        popen.stdin.write(json.dumps(request) + "\n")
        popen.stdin.close()
        for line in popen.stdout:
            answer: dict[str, Any] = json.loads(line)
            if "error" in answer:
                raise ChildFailed(f"tuning {name} failed: {answer['error']}")
            if "result" in answer:
                result: dict[str, Any] = answer["result"]
                return result
            progress(*answer["progress"])
    raise ChildFailed(f"the process that tunes {name} died (exit code {popen.returncode}); its messages are above")
