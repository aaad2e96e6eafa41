"""What a stage's process prints: kept on disk up to a limit, its last lines in memory for messages."""

from __future__ import annotations

import re
from pathlib import Path
from types import TracebackType
from typing import Self

MOST_BYTES = 64 << 20
"""A progress bar that draws itself for a night must not fill the disk."""
_LINES, _LINE, _KEPT = 15, 300, 1 << 15


class StageLog:
    """Appends to the file; a context manager.

    Args:
        path: is created where it is missing, its folder has to be there.
        most: bytes that the file may grow to; what comes after is left out, which its last line says.
    """

    def __init__(self, path: Path, most: int = MOST_BYTES) -> None:
        self.path, self._most = path, most
        self._file = path.open("ab")
        self._full = self._file.tell() >= most
        self._tail = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()

    def write(self, data: bytes) -> None:
        """Keep it, on disk at once."""
        self._tail = (self._tail + data)[-_KEPT:]
        if self._full:
            return
        room = self._most - self._file.tell()
        self._file.write(data[:room])
        if len(data) >= room:
            self._full = True
            self._file.write(b"\n[the rest is left out: the log of a stage ends at %d bytes]\n" % self._most)
        self._file.flush()

    def last_lines(self) -> str:
        """The path, and the last lines that hold anything, as the end of a message; each redrawing counts as a line."""
        text = self._tail.decode(errors="replace")
        lines = [line for line in re.split(r"[\r\n]+", text) if line.strip()][-_LINES:]
        shown = "".join(f"\n    {line if len(line) <= _LINE else '... ' + line[-_LINE:]}" for line in lines)
        return f"\n  log: {self.path}" + (f"\n  last lines:{shown}" if shown else "")
