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

from tasks.running.errors import UnsafeLock

_POLL_SECONDS = 0.05


@contextmanager
def machine_lock(*, exclusive: bool, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the machine for the body; ``on_wait`` is called while waiting and may raise to give up.

    Raises:
        UnsafeLock: another user could have prepared the lock's folder or files.
    """
    folder = lock_folder()
    with ExitStack() as stack:
        within = stack.enter_context(_open_folder(folder, shared="WINNOW_MACHINE_LOCK" in os.environ))
        turnstile = stack.enter_context(_open_file(folder / "turnstile", within))
        machine = stack.enter_context(_open_file(folder / "machine", within))
        _take(turnstile, fcntl.LOCK_EX, on_wait)
        _take(machine, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH, on_wait)
        fcntl.flock(turnstile, fcntl.LOCK_UN)
        yield


def lock_folder() -> Path:
    """Where the locks lie: WINNOW_MACHINE_LOCK, else a folder of this user's in the temporary one."""
    return Path(os.environ.get("WINNOW_MACHINE_LOCK", Path(tempfile.gettempdir()) / f"winnow-{os.getuid()}"))


@contextmanager
def _open_folder(folder: Path, *, shared: bool) -> Iterator[int]:
    """The folder as a descriptor: what was looked at is what is used, whatever is renamed meanwhile.

    The one of the temporary folder has a name that everybody can guess, and make first: it must be ours alone. One that
    WINNOW_MACHINE_LOCK names may be shared with other users on purpose.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if shared else os.O_NOFOLLOW))
    except OSError as error:
        raise UnsafeLock(_refusal(folder, error.strerror)) from error
    try:
        found = os.fstat(descriptor)
        if not shared and found.st_uid != os.getuid():
            raise UnsafeLock(_refusal(folder, f"it belongs to user {found.st_uid}"))
        if not shared and found.st_mode & 0o022:
            raise UnsafeLock(_refusal(folder, "other users may write to it"))
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _open_file(path: Path, folder: int) -> Iterator[int]:
    """A lock file, made where missing; nothing is ever written to it, and a link is not followed."""
    try:
        descriptor = os.open(path.name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
    except OSError as error:
        raise UnsafeLock(_refusal(path, error.strerror)) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _refusal(path: Path, why: str | None) -> str:
    return (
        f"the lock {path} cannot be used: {why}; it may be another user's trap: remove it, or set WINNOW_MACHINE_LOCK "
        "to a folder of yours"
    )


def _take(descriptor: int, mode: int, on_wait: Callable[[], None] | None) -> None:
    while True:
        try:
            fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if on_wait:
                on_wait()
            time.sleep(_POLL_SECONDS)
