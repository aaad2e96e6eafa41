"""An embedded stack of a benchmark's own, in its own folder on free ports, that ends with the benchmark."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from infra import ports

WINNOW = Path(sys.executable).parent / "winnow"
_OURS = ("AWS_", "WINNOW_", "PREFECT_", "MLFLOW_")
_LOCK = "WINNOW_MACHINE_LOCK"
"""Stays: whoever gives proofs cores of their own (taskset) gives each a lock of its own too."""
_PATIENCE = 30.0
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class FolderTaken(RuntimeError):
    """Two benchmarks cannot share a folder: the first to end would take the stack from the other."""


@dataclass(frozen=True)
class OwnStack:
    """A running stack. ``environment``: what a ``winnow`` command needs to find it."""

    home: Path
    environment: dict[str, str]
    up_seconds: float

    def relay(self, *arguments: str) -> tuple[int, bytes]:
        """Run a ``winnow`` command, its standard error passed on line by line; its exit code and standard output.

        Through a pipe, because a search tells how it goes in lines only where standard error is no terminal.
        """
        command = [str(WINNOW), *arguments]
        with (
            tempfile.TemporaryFile() as answer,
            subprocess.Popen(
                command, cwd=self.home, env=self.environment, stdout=answer, stderr=subprocess.PIPE, text=True
            ) as process,
        ):
            assert process.stderr is not None
            try:
                for line in process.stderr:
                    print(line, end="", file=sys.stderr, flush=True)
                code = process.wait()
            except BaseException:
                _stop(process)
                raise
            answer.seek(0)
            return code, answer.read()


@contextmanager
def own_stack(home: Path, *, keep: bool = False) -> Iterator[OwnStack]:
    """The stack of that folder, up for the body; how it ends, by an error or a signal, does not matter.

    Args:
        home: its WINNOW_HOME, made where missing; what lies there stays.
        keep: leave the stack up where the body ends without an error.

    Raises:
        FolderTaken: another benchmark uses it.
        CalledProcessError: it does not come up; its messages are on standard error.
    """
    home = home.absolute()
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    numbers = ports.pick(len(ports.PUBLIC))
    environment = {k: v for k, v in os.environ.items() if k == _LOCK or not k.startswith(_OURS)}
    environment |= {port.variable: str(free) for port, free in zip(ports.PUBLIC, numbers, strict=True)}
    environment["WINNOW_HOME"] = str(home)
    done = False
    with _alone(home):
        try:
            began = time.monotonic()
            _winnow("up", home, environment)
            yield OwnStack(home, environment, time.monotonic() - began)
            done = True
        finally:
            if not (done and keep):
                with _undisturbed():
                    _winnow("down", home, environment)


def unwind_on_signals() -> None:
    """Let SIGTERM and a closed terminal unwind as Ctrl-C does, so that no stack stays behind."""

    def leave(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, leave)


def _stop(process: subprocess.Popen[str]) -> None:
    """As Ctrl-C does, which reached it already where it came from a terminal; a run then puts its states in order."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()


def _winnow(command: str, home: Path, environment: dict[str, str]) -> None:
    subprocess.run([WINNOW, command], cwd=home, env=environment, check=True, stdout=subprocess.DEVNULL)


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Only one benchmark at a time has the folder."""
    with (home / "benchmark.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderTaken(f"another benchmark uses {home}; wait for it, or choose another folder") from None
        yield


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Whoever presses Ctrl-C again does not interrupt the body, nor the children that it starts."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
