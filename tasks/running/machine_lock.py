"""One lock per machine: any number may compute at once, but a measurement runs alone.

flock(2) on two files: a shared or exclusive lock on the second, and a turnstile before it that an exclusive taker holds
while it waits, so that a stream of computations cannot starve a measurement. The kernel frees both when the process
ends, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

_POLL_SECONDS = 0.05


@contextmanager
def machine_lock(*, exclusive: bool, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the machine for the body; ``on_wait`` is called while waiting and may raise to give up."""
    folder = lock_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with ExitStack() as stack:
        turnstile = stack.enter_context((folder / "turnstile").open("w"))
        machine = stack.enter_context((folder / "machine").open("w"))
        _take(turnstile, fcntl.LOCK_EX, on_wait)
        _take(machine, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH, on_wait)
        fcntl.flock(turnstile, fcntl.LOCK_UN)
        yield


def lock_folder() -> Path:
    """Where the locks lie: WINNOW_MACHINE_LOCK, else a folder of this user's in the temporary one."""
    return Path(os.environ.get("WINNOW_MACHINE_LOCK", Path(tempfile.gettempdir()) / f"winnow-{os.getuid()}"))


def _take(stream: IO[str], mode: int, on_wait: Callable[[], None] | None) -> None:
    while True:
        try:
            fcntl.flock(stream, mode | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if on_wait:
                on_wait()
            time.sleep(_POLL_SECONDS)
