"""``winnow run`` without its imports: processes like any other, but forked from one that has imported the flow already.

Tests of what becomes of runs start dozens of them, and importing would take longer than what is looked at.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # -P leaves it out

from forked_stages import fork_children


class ForkedRun:
    """A run that was started: the part of ``subprocess.Popen`` that tests need."""

    def __init__(self, pid: int, folder: Path) -> None:
        self.pid, self._folder = pid, folder
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if self.returncode is None and (self._folder / "code").exists():
            self.returncode = int((self._folder / "code").read_text())
        return self.returncode

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def communicate(self, timeout: float = 60) -> tuple[str, str]:
        """Wait for its end; what it wrote to stdout and stderr.

        Raises:
            subprocess.TimeoutExpired: it did not end in so many seconds.
        """
        out, err = self._folder / "out", self._folder / "err"
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(["winnow"], timeout, out.read_bytes(), err.read_bytes())
            time.sleep(0.02)
        return out.read_text(), err.read_text()


class Forks:
    """A process with everything imported that forks one for each run; ``environment`` is what all of them get."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._parent = subprocess.Popen(
            [sys.executable, "-P", __file__],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, folder: Path, *arguments: str) -> ForkedRun:
        """Start ``winnow`` with these arguments in this folder, in a session of its own."""
        assert self._parent.stdin is not None and self._parent.stdout is not None
        kept = Path(tempfile.mkdtemp(dir=folder, prefix="output-"))
        print(json.dumps([str(folder), str(kept), *arguments]), file=self._parent.stdin, flush=True)
        return ForkedRun(int(self._parent.stdout.readline()), kept)

    def close(self) -> None:
        """End it; runs that still live are left to the session's reaper."""
        self._parent.communicate(timeout=600)
        assert self._parent.returncode == 0


def _run(folder: str, kept: Path, arguments: list[str]) -> None:
    """Be the process that the test asked for."""
    from flows.commands import cli

    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may have them ignored
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.chdir(folder)
    for descriptor, name, flags in ((0, os.devnull, os.O_RDONLY), (1, kept / "out", os.O_WRONLY | os.O_CREAT),
                                    (2, kept / "err", os.O_WRONLY | os.O_CREAT)):  # fmt: skip
        opened = os.open(name, flags)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.argv = ["winnow", *arguments]
    cli.main()


def _serve() -> None:
    from flows.reaching import quiet_environment

    quiet_environment()
    # Not onnxruntime: it starts a thread when it is imported, which a forked process misses when it ends.
    for module in ("flows.commands.command_run", "flows.compress", "flows.commands.result_table", "matplotlib.figure"):
        importlib.import_module(module)
    fork_children(importlib.import_module("tasks.running.launch"))
    gc.freeze()
    running: dict[int, Path] = {}
    while True:
        if select.select([sys.stdin], [], [], 0.01 if running else None)[0]:
            line = sys.stdin.readline()
            if not line:
                return
            folder, kept, *arguments = json.loads(line)
            pid = os.fork()
            if pid == 0:
                _run(folder, Path(kept), arguments)
            running[pid] = Path(kept)
            print(pid, flush=True)
        pid, status = os.waitpid(-1, os.WNOHANG) if running else (0, 0)
        if pid:
            partial = running[pid] / "partial"
            partial.write_text(str(os.waitstatus_to_exitcode(status)))
            partial.rename(running.pop(pid) / "code")


if __name__ == "__main__":
    _serve()
