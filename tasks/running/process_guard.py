"""A small process beside a run that outlives it by a moment: it ends what the run has started and removes its files.

A killed run cannot clean up, and a lifeline alone does not do: nobody reads it while an extension keeps a process's
interpreter lock, and who has a session of its own does not die with its parent's group. So all that a run starts
carries a mark in its environment, and this process, whose stdin ends with the run, kills whoever carries it. Run as a
script it imports nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MARK = "WINNOW_RUN_MARK"
_PROC = Path("/proc")


@dataclass(frozen=True)
class Guarded:
    """What this process and its guard have agreed on."""

    mark: str
    """The value of MARK in every process that this one starts is this, a dot, and anything."""
    scratch: Path
    """For temporary files; gone when this process is, however it ends."""
    lifeline: int
    pid: int


_guarded: Guarded | None = None
_lock = threading.Lock()


def guarded() -> Guarded:
    """Start the guard of this process, once; a forked process gets one of its own."""
    global _guarded
    with _lock:
        if _guarded is None:
            mark = uuid.uuid4().hex
            scratch = Path(tempfile.mkdtemp(prefix="winnow-"))
            reading, lifeline = os.pipe()
            guard = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, mark, str(scratch)],
                stdin=reading,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C and what ends the run's group are not meant for it
            )
            guard.returncode = 0  # nobody waits for it: it ends after us
            os.close(reading)
            _guarded = Guarded(mark, scratch, lifeline, os.getpid())
        return _guarded


@contextlib.contextmanager
def run_folder() -> Iterator[Path]:
    """A temporary folder for the run's own process, gone with it however it ends."""
    with tempfile.TemporaryDirectory(dir=guarded().scratch) as folder:
        yield Path(folder)


def _forget() -> None:
    global _guarded, _lock
    if _guarded is not None:
        os.close(_guarded.lifeline)  # else the parent's guard would wait for us
    _guarded, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)


def end_marked(mark: str) -> None:
    """Kill every process that was started with MARK set to the mark, or to the mark with a dot and something behind."""
    wanted = f"{MARK}={mark}".encode()
    for _ in range(3):  # one that was being started is found in the next round
        found = [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit() and _has(entry, wanted)]
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not found:
            return


def _has(entry: Path, wanted: bytes) -> bool:
    try:
        settings = (entry / "environ").read_bytes().split(b"\0")
    except OSError:  # it has ended, or is somebody else's
        return False
    return any(setting == wanted or setting.startswith(wanted + b".") for setting in settings)


def _main(mark: str, scratch: str) -> None:
    sys.stdin.read()
    end_marked(mark)
    shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
