"""What a workload read by itself, so that a result is not taken for current after the files have changed.

What its arguments name is part of the key of the data (:func:`tasks.readers.sources.fingerprint`). A path that only its
code knows is not: the interpreter's audit events tell which files were opened, and texts in the code that name files
tell which a library may have opened without it.
"""

from __future__ import annotations

import ast
import os
import stat
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.running.source_hash import closure_files
from tasks.running.syntax_tree import syntax_tree

MOST_FILES = 20_000
_IGNORED = ("/proc/", "/sys/", "/dev/", "/etc/", "/usr/", "/lib")
_CODE = (".py", ".pyc", ".so", ".pth")
_OURS = ("model_registry/s3_buckets.py", "model_registry/blobs.py", "tasks/readers/sources.py")
_watching: Reads | None = None
_hooked = False


class Reads:
    """Files read and machines talked to, as they come."""

    def __init__(self) -> None:
        self.paths: set[str] = set()
        self.others: set[str] = set()
        """What has no state that could be looked up: databases and web servers, by address."""

    def add(self, path: Path) -> None:
        """Count a file, or all files of a folder."""
        if path.is_dir():
            for entry in path.rglob("*"):
                if entry.is_file() and len(self.paths) <= MOST_FILES:
                    self.paths.add(str(entry))
        elif path.is_file():
            self.paths.add(str(path))

    def noted(self) -> dict[str, Any]:
        """As JSON: ``files`` (path to size and time of the last change), ``others``; empty where nothing was read."""
        others = sorted(self.others)
        if len(self.paths) > MOST_FILES:
            return {"files": {}, "others": [*others, f"more than {MOST_FILES} files"]}
        files = {path: state for path in sorted(self.paths) if (state := _state(path)) is not None}
        return {"files": files, "others": others} if files or others else {}


@contextmanager
def watched_reading(module: str, folder: str | None) -> Iterator[Reads]:
    """Note what is read while the body runs, and the files that the code of the workload names.

    Args:
        module: dotted name of the workload's module.
        folder: the user's folder.
    """
    global _watching, _hooked
    if not _hooked:
        sys.addaudithook(_note)  # for good: it cannot be removed
        _hooked = True
    _watching = reads = Reads()
    try:
        yield reads
    finally:
        _watching = None
    for source in closure_files(module, folder).values() if folder else ():
        for text in _texts(source):
            for base in (source.parent, Path(folder or ""), Path.cwd()):
                if (base / text).exists() and not _passed_over(str(base / text)):
                    reads.add(base / text)
                    break


def changed_since(noted: dict[str, Any] | None) -> str:
    """Why what was read then may differ from what would be read now; '' where it does not."""
    if not noted:
        return ""
    if noted["others"]:
        return f"what it reads from {', '.join(noted['others'])} may have changed"
    changed = [path for path, state in noted["files"].items() if _state(path) != state]
    more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
    return f"changed since: {changed[0]}{more}" if changed else ""


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    reads = _watching
    if reads is None:
        return
    if event == "open":
        path, _, flags = arguments
        if isinstance(path, str | bytes | os.PathLike) and not (isinstance(flags, int) and flags & os.O_ACCMODE):
            text = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 - called for each file that is opened
            if len(reads.paths) <= MOST_FILES and not _passed_over(text) and not text.endswith(_CODE):
                reads.paths.add(text)
    elif event == "sqlite3.connect":
        name = os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes | os.PathLike) else ""
        if name and name != ":memory:":
            reads.paths.add(str(Path(name).absolute()))
    elif event == "socket.connect" and isinstance(arguments[1], tuple) and not _is_ours():
        reads.others.add(":".join(map(str, arguments[1][:2])))


def _passed_over(path: str) -> bool:
    return path.startswith(_IGNORED) or path.startswith(_libraries())


def _libraries() -> tuple[str, ...]:
    """Where installed code and its data lie, and what is temporary."""
    global _places
    if not _places:
        folders = {*sysconfig.get_paths().values(), sys.prefix, tempfile.gettempdir()}
        _places = tuple(f"{folder}/" for folder in folders if folder not in ("", "/"))
    return _places


_places: tuple[str, ...] = ()


def _is_ours() -> bool:
    """Whether the store is what connects: what it fetches is named in the arguments."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename.endswith(_OURS):
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def _state(path: str) -> list[int] | None:
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns] if stat.S_ISREG(found.st_mode) else None


def _texts(source: Path) -> set[str]:
    """Texts in the code that may name a file: those with a dot or a slash, on one line."""
    try:
        tree = syntax_tree(source.read_bytes())
    except SyntaxError:  # who imports it says so
        return set()
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return {t for t in texts if 2 < len(t) < 500 and ("/" in t or "." in t) and t.isprintable() and set(t) - set("./")}
