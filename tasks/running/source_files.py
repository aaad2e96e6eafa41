"""What is known of each source file, so that a file is parsed once and not by every process and stage again.

An entry holds for as long as the file's size, times and inode stay. A file that was written within the last moments may
be written again without any of them changing, so it is not remembered (as git treats its index).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ValidationError

_GRANULARITY_NS = 2_000_000_000  # the coarsest file times in use (FAT, old NFS servers)


class ReadSource(BaseModel):
    """What reading one module found: the hash of its normalised AST and the names that it may import."""

    seen: tuple[int, ...]
    """Device, inode, size, modification and change time of the file that was read."""
    digest: str
    imports: tuple[str, ...]


class _Remembered(BaseModel):
    files: dict[str, ReadSource] = {}


class SourceFiles:
    """The files read so far, kept in the stack's folder between processes where there is one.

    Args:
        read: parses the module of that path and dotted name.
        kind: changes when the same source would be read differently.
    """

    def __init__(self, read: Callable[[Path, str], tuple[str, tuple[str, ...]]], kind: str) -> None:
        self._read, self._kind = read, f"{sys.implementation.cache_tag}-{kind}"
        self._known: dict[str, ReadSource] = {}
        self._loaded: Path | None = None
        self._news = False

    def look_at(self, path: str, name: str) -> ReadSource:
        """The module at that path; ``name`` is its dotted name, which relative imports start from.

        Raises:
            OSError, WorkloadError: it cannot be read.
        """
        self._load()
        seen, now = _state(path), time.time_ns()
        key = f"{name} {path}"
        known = self._known.get(key)
        if known is not None and known.seen == seen:
            return known
        found = ReadSource(seen=seen, **dict(zip(("digest", "imports"), self._read(Path(path), name), strict=True)))
        settled = max(seen[-2:]) + _GRANULARITY_NS < now
        if settled and _state(path) == seen:
            self._known[key] = found
            self._news = True
        return found

    def keep(self) -> None:
        """Let other processes know what was read here; where the folder cannot be written they read for themselves."""
        place = self._place()
        if not self._news or place is None:
            return
        partial = place.with_name(f".{place.name}-{os.getpid()}")
        try:
            place.parent.mkdir(exist_ok=True)
            partial.write_text(_Remembered(files=self._known).model_dump_json())
            partial.replace(place)
        except OSError:
            partial.unlink(missing_ok=True)
        self._news = False

    def _load(self) -> None:
        place = self._place()
        if place is None or place == self._loaded:
            return
        self._loaded = place
        try:
            kept = _Remembered.model_validate_json(place.read_bytes())
        except (FileNotFoundError, ValidationError):  # none yet, or damaged: it is written again
            return
        self._known = kept.files | self._known

    def _place(self) -> Path | None:
        home = Path(os.environ.get("WINNOW_HOME", ".winnow")).absolute()
        return home / "cache" / f"sources-{self._kind}.json" if home.is_dir() else None


def _state(path: str) -> tuple[int, ...]:
    found = os.stat(path)  # noqa: PTH116 - a thousand times a run
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
