"""Puts requests together from the bytes of a connection: bounded at every step, whatever the pieces they arrive in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from serving.front.chunked_body import ChunkedBody, MalformedChunks
from serving.front.http_head import ByteBudget, HeadTable, RequestHead, read_head
from serving.limits import RequestLimits
from serving.telemetry.request_notes import RequestMarks, split_marks

_SMALL_BODY = 1 << 16
"""A body that is read to its end although its request is refused: the connection can then be used again."""

Arrived = tuple[RequestHead, bytes]


class RequestRefused(Exception):
    """The request cannot be read to its end: ``status``, text and further header ``lines`` of the answer."""

    def __init__(self, status: int, text: str, lines: bytes = b"") -> None:
        super().__init__(text)
        self.status, self.lines = status, lines


class RequestReader:
    """Reads one request after the other.

    Args:
        heads: of requests that were taken before.
        admit: sets a new head's ``route``, or its ``refusal``.
        go_on: asks a client to send its body that waits for that.
        budget: of all bodies that are arriving.

    Attributes:
        within: what of a request has begun to arrive.
        rest: what came behind the latest request.
        marks: what the latest head says of its request alone.
    """

    __slots__ = (
        "_admit",
        "_budget",
        "_chunks",
        "_go_on",
        "_head",
        "_heads",
        "_limits",
        "_part",
        "_reserved",
        "_start",
        "marks",
        "rest",
        "within",
    )

    def __init__(
        self,
        heads: HeadTable,
        limits: RequestLimits,
        admit: Callable[[RequestHead], None],
        go_on: Callable[[], None],
        budget: ByteBudget,
    ) -> None:
        self._heads, self._limits, self._admit, self._go_on, self._budget = heads, limits, admit, go_on, budget
        self._reserved = 0
        self._start = bytearray()
        """Of a head that is not complete."""
        self._head: RequestHead | None = None
        self._part = bytearray()
        """Of a body whose length is known."""
        self._chunks: ChunkedBody | None = None
        self.within: Literal["nothing", "head", "body"] = "nothing"
        self.rest = b""
        self.marks: RequestMarks | None = None

    def feed(self, data: bytes) -> Arrived | None:
        """Take in the next bytes; a request once it is whole.

        Raises:
            RequestRefused: it breaks HTTP or a limit, or is refused by its head and too long to be read for nothing.
        """
        if self.within == "nothing":
            return self._read_head(data)
        if self.within == "head":
            self._start += data
            return self._read_head(bytes(self._start), since=len(self._start) - len(data))
        return self._fill(data) if self._chunks is None else self._fill_chunks(data)

    def _read_head(self, data: bytes, since: int = 0) -> Arrived | None:
        """The head, once it is there; ``since``: where the bytes begin that were not looked at yet."""
        if data.startswith(b"\r\n"):  # some clients send one more than they should
            data = data.lstrip(b"\r\n")
        end = data.find(b"\r\n\r\n", max(0, since - 3))
        most = self._limits.head_bytes
        self.marks = None
        if end > most or (end < 0 and len(data) > most):
            raise RequestRefused(431, f"the request's head is longer than {most} bytes")
        if end < 0:
            self.within, self._start = "head", bytearray(data)
            return None
        self._start, raw, body_at = bytearray(), data[:end], end + 4
        head = self._heads.heads.get(raw)
        if head is None:
            raw, self.marks = split_marks(raw)
            if self.marks is not None:
                head = self._heads.heads.get(raw)
        if head is None:
            head = read_head(data[:body_at])
            self._look_at(head)
            self._heads.keep(raw, head)
        return self._read_body(head, data, body_at)

    def _look_at(self, head: RequestHead) -> None:
        """Whether the body of a head seen for the first time is to be read."""
        limits = self._limits
        if len(head.headers) > limits.headers:
            raise RequestRefused(431, f"the request has more than {limits.headers} headers")
        if head.refusal is None:
            self._admit(head)
        if head.refusal is None and head.length is not None and head.length > limits.body_bytes:
            head.refusal = (
                413,
                f"the body is longer than {limits.body_bytes} bytes; send fewer samples per request",
                b"",
            )
        if head.refusal is not None and (
            not head.keep or head.length is None or head.length > _SMALL_BODY or head.expects
        ):
            raise RequestRefused(*head.refusal)
        if head.expects:
            self._go_on()

    def _read_body(self, head: RequestHead, data: bytes, start: int) -> Arrived | None:
        self.within, self._head = "body", head
        if head.length is None:
            self._reserve(self._limits.body_bytes)  # nobody knows how long it becomes
            self._chunks = ChunkedBody(self._limits)
            return self._fill_chunks(data[start:])
        end = start + head.length
        if len(data) >= end:
            return self._whole(data[start:end], data[end:])
        self._reserve(head.length)
        self._part = bytearray(data[start:])
        return None

    def _reserve(self, size: int) -> None:
        if not self._budget.reserve(size):
            raise RequestRefused(503, "too many large bodies are arriving; try again later", b"retry-after: 1\r\n")
        self._reserved = size

    def stop(self) -> None:
        """Nothing more is read."""
        self._budget.give_back(self._reserved)
        self._reserved = 0

    def _fill(self, data: bytes) -> Arrived | None:
        """More of a body whose length is known."""
        assert self._head is not None and self._head.length is not None
        missing = self._head.length - len(self._part)
        self._part += data[:missing]
        if len(data) < missing:
            return None
        body, self._part = bytes(self._part), bytearray()
        return self._whole(body, data[missing:])

    def _fill_chunks(self, data: bytes) -> Arrived | None:
        """More of a body whose length only its last chunk tells."""
        assert self._chunks is not None
        try:
            rest = self._chunks.feed(data)
        except MalformedChunks as error:
            raise RequestRefused(error.status, str(error)) from error
        if rest is None:
            return None
        body, self._chunks = self._chunks.body, None
        return self._whole(body, rest)

    def _whole(self, body: bytes, rest: bytes) -> Arrived:
        assert self._head is not None
        if self._reserved:
            self.stop()
        head, self._head, self.within, self.rest = self._head, None, "nothing", rest
        return head, body
