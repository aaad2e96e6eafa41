"""The components' logs, read as ``tail`` does."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from infra.daemon import Daemon


def tail(home: Path, names: Sequence[str], lines: int) -> Iterator[tuple[str, str]]:
    """(component, line) of the last lines of each log."""
    for name in names:
        for line in Daemon(name, home).tail(lines):
            yield name, line


def follow(home: Path, names: Sequence[str], *, every: float = 0.25) -> Iterator[tuple[str, str]]:
    """(component, line) of whatever is written from now on, for ever; logs that start over are followed too."""
    files = {name: Daemon(name, home).log_file for name in names}
    read = {name: _size(path) for name, path in files.items()}
    while True:
        for name, path in files.items():
            size = _size(path)
            if size < read[name]:  # rotated
                read[name] = 0
            if size > read[name]:
                with path.open("rb") as log:
                    log.seek(read[name])
                    fresh = log.read()
                whole = fresh[: fresh.rfind(b"\n") + 1]
                read[name] += len(whole)
                for line in whole.decode(errors="replace").splitlines():
                    yield name, line
        time.sleep(every)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
