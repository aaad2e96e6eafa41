"""The access log: a line of JSON for each request, never a body, a query or a key."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from serving.telemetry.request_notes import RequestNotes

STANDARD_OUTPUT = "-"
_LONGEST_PATH = 200
log = logging.getLogger("winnow.serving")


class AccessLog:
    """Appends to a file.

    Args:
        path: of the file, or ``-`` for standard output.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._failed = False
        self._file = self._open()

    def write(self, ended: Sequence[RequestNotes]) -> None:
        since = time.time() - time.monotonic()
        lines = b"".join(orjson.dumps(access_line(notes, since)) + b"\n" for notes in ended)
        if self._failed:  # the last line may be there in part
            lines = b"\n" + lines
        with self._lock:
            try:
                _write_all(self._file, lines)
                self._failed = False
            except OSError as error:
                if not self._failed:  # once
                    log.error(
                        "the access log %s cannot be written, and requests are missing there: %s", self._path, error
                    )
                self._failed = True

    def reopen(self) -> None:
        """Go on in a new file of the same name: the old one was moved away."""
        if self._path == STANDARD_OUTPUT:
            return
        try:
            new = self._open()
        except OSError as error:
            log.error("the access log goes on in the file that was moved away: %s", error)
            return
        with self._lock:
            old, self._file = self._file, new
        os.close(old)
        log.info("the access log goes on in %s", self._path)

    def close(self) -> None:
        with self._lock:
            if self._path != STANDARD_OUTPUT:
                os.close(self._file)

    def _open(self) -> int:
        if self._path == STANDARD_OUTPUT:
            return sys.stdout.fileno()
        return os.open(Path(self._path), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)


def access_line(notes: RequestNotes, since: float) -> dict[str, Any]:
    """What the log says of a request.

    Args:
        since: seconds since 1970 at which the monotonic clock was 0.
    """
    head = notes.head
    route = None if head is None else head.route
    return {
        "time": datetime.fromtimestamp(since + notes.began, UTC).isoformat(timespec="milliseconds"),
        "id": notes.id.decode(),
        "key": None if route is None or route.principal is None else route.principal.key.id,
        "method": None if head is None else head.method.decode("latin-1"),
        "path": None if head is None else head.path[:_LONGEST_PATH].decode("latin-1"),
        "model": (route.model or None) if route is not None else None,
        "version": notes.version or (route.version if route is not None else "") or None,
        "status": notes.status,
        "ms": round(1e3 * (notes.ended - notes.began), 3),
    }


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
