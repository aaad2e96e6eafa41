"""What is noted of one request: its id, who sent it, how long it took; made only where somebody reads it."""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from serving.engines.engine_frames import EngineWork
    from serving.front.http_head import RequestHead
    from serving.telemetry.request_watch import RequestWatch

_MARK = re.compile(
    rb"\r\n(?:(?i:x-request-id):[ \t]*(?P<id>[A-Za-z0-9._:/+=@-]{1,128})"
    rb"|(?i:traceparent):[ \t]*(?P<parent>[0-9a-f-]{55})"
    rb"|(?i:tracestate):[ \t]*(?P<state>[!-~][ -~]{0,511}))[ \t]*(?=\r\n[^ \t]|\Z)"
)
"""Whole header lines behind another line, and not continued in the next one."""
LEFT = 499
"""Status of a request whose client did not wait for the answer."""


class RequestMarks(NamedTuple):
    """What the head says of this one request alone; empty where it says nothing, or nothing well-formed."""

    id: bytes = b""
    parent: bytes = b""
    """``traceparent`` and ``tracestate`` (W3C Trace Context) of the caller's span."""
    state: bytes = b""


def split_marks(raw: bytes) -> tuple[bytes, RequestMarks | None]:
    """A head without the lines that differ from request to request, so that the rest may have been seen before.

    Args:
        raw: a request's head, without its last CRLFs.

    Returns:
        The rest, which means the same but for the marks, and these; the head as it was, and None, where it has none or
        one of them twice.
    """
    found: dict[str, bytes] = {}
    for match in _MARK.finditer(raw):
        name = match.lastgroup
        if name is None or name in found:
            return raw, None
        found[name] = match[name]
    return (_MARK.sub(b"", raw), RequestMarks(**found)) if found else (raw, None)


class RequestNotes:
    """Of a request that is being answered.

    Attributes:
        id: the caller's, or one of ours.
        head: None where it could not be read to its end.
        marks: None where it has none.
        began: when its last byte was there, ``ended``: when its answer was, by the monotonic clock.
        status: of the answer; LEFT where nobody waited for it.
        version: that answered, or was to.
        queued: seconds until an engine got it; ``computed``: that the engine took for all that ran together with it,
            which were ``batched`` requests of ``rows`` rows. None where no engine did anything.
    """

    __slots__ = (
        "batched",
        "began",
        "computed",
        "ended",
        "head",
        "id",
        "marks",
        "queued",
        "rows",
        "status",
        "version",
    )

    def __init__(self, head: RequestHead | None, marks: RequestMarks | None) -> None:
        self.head, self.marks = head, marks
        self.id = marks.id if marks is not None and marks.id else os.urandom(8).hex().encode()
        self.began, self.ended, self.status, self.version = time.monotonic(), 0.0, 0, ""
        self.queued: float | None = None
        self.computed: float | None = None
        self.rows = self.batched = 0

    def worked(self, queued: float, work: EngineWork, batched: int) -> None:
        """An engine answered it; may come after :meth:`end`, in the same turn of the loop."""
        self.queued, self.batched = queued, batched
        self.computed, self.rows = (work.input_us + work.run_us + work.output_us) / 1e6, work.rows

    def end(self, status: int, watch: RequestWatch | None) -> bytes:
        """The request is answered; the header line that says its id."""
        self.ended, self.status = time.monotonic(), status
        if watch is not None:
            watch.done(self)
        return b"x-request-id: %s\r\n" % self.id


def notes_of(head: RequestHead | None, marks: RequestMarks | None, watch: RequestWatch | None) -> RequestNotes | None:
    """Notes of a request, where anybody will read them: its caller who gave it an id, or a watch."""
    if watch is None and (marks is None or not marks.id):
        return None
    return RequestNotes(head, marks)
