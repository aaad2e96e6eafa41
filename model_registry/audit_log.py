"""Who did what, in a file where nothing can be changed, taken out or put in between without its being seen.

Each line is JSON and holds the SHA-256 of the line before together with its own content (a hash chain: Haber and
Stornetta 1991, "How to time-stamp a digital document"). What is cut off at the end shows only to whoever noted the last
hash.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

FIRST = "0" * 64
_CHUNK = 1 << 16


class AuditBroken(Exception):
    """A line is not the one that was written; names its number."""


class AuditLog:
    """Appends lines; several processes may write to the same file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, who: str, what: str, decision: str, **facts: Any) -> None:
        """Add a line.

        Args:
            who: key or listener; never a secret.
            decision: ``done``, ``refused``, ``failed``.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(self._path, flags, 0o600), "r+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            content = {"time": round(time.time(), 3), "who": who, "what": what, "decision": decision, **facts}
            before = _last_hash(stream)
            stream.write(_line(before, content))


def verify_audit(path: Path) -> tuple[int, str]:
    """The number of lines, and the hash of the last one.

    Raises:
        AuditBroken: the first line that is not what was written.
    """
    before, number = FIRST, 0
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                content = json.loads(line)
                said = content.pop("hash")
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise AuditBroken(f"line {number} of {path} is not one of the log's") from error
            if line != _line(before, content):
                raise AuditBroken(f"line {number} of {path} does not follow from the lines before it")
            before = said
    return number, before


def _line(before: str, content: dict[str, Any]) -> bytes:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    found = hashlib.sha256((before + text).encode()).hexdigest()
    return json.dumps({**content, "hash": found}, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def _last_hash(stream: Any) -> str:
    """Of the last whole line; what a killed process left half written is cut off."""
    end = stream.seek(0, os.SEEK_END)
    data, start = b"", end
    while start and data.count(b"\n", 0, -1) < 1:
        start = max(0, start - _CHUNK)
        stream.seek(start)
        data = stream.read(end - start)
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        stream.truncate(start + len(whole))
    if not whole:
        return FIRST
    last = json.loads(whole.rstrip(b"\n").rsplit(b"\n", 1)[-1])
    return str(last["hash"])
