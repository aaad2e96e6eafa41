"""Runs the ``winnow`` command as a user does: a process of its own, in a folder of its own, against the test stack."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from forked_runs import ForkedRun, Forks
from patience import PATIENCE

WINNOW = [sys.executable, "-P", "-m", "flows.commands.cli"]
_OURS = ("AWS_", "WINNOW_", "PREFECT_", "MLFLOW_")
_KEPT = ("WINNOW_TEST_SESSION", "WINNOW_MACHINE_LOCK", "WINNOW_TEST_NURSERY")


def environment(**extra: str) -> dict[str, str]:
    """A user's environment: nothing of ours but what is given."""
    clean = {k: v for k, v in os.environ.items() if k in _KEPT or not k.startswith(_OURS)}
    return {**clean, **extra}


class Winnow:
    """The command in one folder, with one environment; runs are forked where ``forks`` has imported everything."""

    def __init__(self, folder: Path, home: Path, forks: Forks | None = None, /, **extra: str) -> None:
        self.folder, self.home, self.forks = folder, home, forks
        self.environment = environment(WINNOW_HOME=str(home), **extra)

    def __call__(self, *arguments: str, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return subprocess.run(
            [*WINNOW, *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start it and return at once."""
        return subprocess.Popen(
            [*WINNOW, *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def start_run(self, *arguments: str) -> subprocess.Popen[str] | ForkedRun:
        """Start ``winnow run ... --json`` and return at once."""
        start = self.start if self.forks is None else partial(self.forks.start, self.folder)
        return start("run", *arguments, "--json")

    def report(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        """Run ``winnow run ... --json`` and return its report; asserts the exit code."""
        process = self.start_run(*arguments)
        try:
            out, err = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired as late:
            process.kill()  # or the next test's runs would wait for what it holds
            raise AssertionError(f"not done in {late.timeout} s\n{late.output!r}\n{late.stderr!r}") from None
        assert process.returncode == code, f"exit {process.returncode}\n{out[-2000:]}\n{err[-4000:]}"
        report: dict[str, Any] = json.loads(out)
        return report


def stage_lines(report: Mapping[str, Any]) -> dict[str, str]:
    """Stage name to status."""
    return {line["name"]: line["status"] for line in report["stages"]}
