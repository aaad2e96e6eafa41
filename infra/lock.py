"""One ``winnow up`` or ``winnow down`` at a time for one folder."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.faults import StackBusy


@contextmanager
def exclusive(path: Path, *, patience: float, waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock file. The kernel frees it when its holder ends, however it ends.

    ``waiting`` is called once, with a sentence, when another process holds it.

    Raises:
        StackBusy: not free within ``patience`` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline, told = time.monotonic() + patience, False
    with path.open("a+") as stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                stream.seek(0)
                holder = f"another winnow command (pid {stream.read().strip() or '?'}) is changing the stack"
            if not told:
                waiting(f"{holder}; waiting for it")
                told = True
            if time.monotonic() > deadline:
                raise StackBusy(f"{holder} and did not finish in {patience:.0f} s; end it and try again")
            time.sleep(0.1)
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield
