"""The head of an HTTP request, read once: a client that sends the same head again finds it in a table.

What a head means is a pure function of its bytes, as long as the parser stands between two messages. So heads that
llhttp has taken before are looked up instead of parsed: their route, their length, who sent them.
"""

from __future__ import annotations

from typing import Any

import httptools

MOST_KEPT = 4096
LONGEST_KEPT = 2048
_ENDLESS = 1 << 60
_UNIQUE = (b"content-length", b"authorization", b"host", b"content-encoding", b"inference-header-content-length")


class RequestHead:
    """Method, path and headers of a request, and what the front made of them.

    Attributes:
        path: without the query, percent-encoded as it came.
        headers: the last value of each by lower-case name.
        length: of the body in bytes as announced; None for a chunked one.
        keep: whether the connection stays open after the answer.
        old: whether it is HTTP/1.0, whose clients want to be told that it stays open.
        once: whether another one of the same bytes may mean something else.
        refusal: why it is refused whatever its body is: status, text, further header lines.
        route: where it goes, set by whoever serves.
    """

    __slots__ = ("expects", "headers", "keep", "length", "method", "old", "once", "path", "refusal", "route")

    def __init__(self, method: bytes, url: bytes, headers: dict[bytes, bytes], *, keep: bool) -> None:
        self.method, self.headers, self.keep = method, headers, keep
        self.path = url.partition(b"?")[0]
        self.length: int | None = None
        self.expects = self.old = self.once = False
        self.refusal: tuple[int, str, bytes] | None = None
        self.route: Any = None


def read_head(raw: bytes) -> RequestHead:
    """The head from its bytes, up to and with the empty line; what breaks HTTP is in its ``refusal``."""
    parse = _Parse()
    try:
        parse.parser.feed_data(raw)
    except httptools.HttpParserUpgrade:  # another protocol is offered; we go on with this one
        pass
    except httptools.HttpParserError:
        parse.complete = False
    if not parse.complete:
        refused = RequestHead(b"", b"", {}, keep=False)
        refused.refusal = (400, "the request is not valid HTTP", b"")
        return refused
    found: dict[bytes, bytes] = {}
    twice = None
    for name, value in parse.headers:
        name = name.lower()
        if name in found and name in _UNIQUE:
            twice = name
        found[name] = value
    head = RequestHead(parse.method, parse.url, found, keep=parse.keep)
    head.old = parse.version == "1.0"
    head.refusal = _refusal(head, parse.version, twice)
    if head.refusal is not None:
        head.keep = False
    return head


def _refusal(head: RequestHead, version: str, twice: bytes | None) -> tuple[int, str, bytes] | None:
    """What of it breaks HTTP; sets ``length`` and ``expects``."""
    coding = head.headers.get(b"transfer-encoding")
    if coding is None:
        announced = head.headers.get(b"content-length", b"0")
        head.length = int(announced) if len(announced) < 19 else _ENDLESS
    elif coding.lower() != b"chunked":
        return 501, "the only transfer-encoding that is taken is chunked", b""
    expected = head.headers.get(b"expect", b"").lower()
    head.expects = expected == b"100-continue"
    if twice is not None:
        return 400, f"the header {twice.decode()} is given twice", b""
    if version == "1.1" and b"host" not in head.headers:
        return 400, "an HTTP/1.1 request must have a Host header", b""
    if expected and not head.expects:
        return 417, "the only expectation that is met is 100-continue", b""
    return None


class _Parse:
    """What llhttp calls back with."""

    def __init__(self) -> None:
        self.parser: Any = httptools.HttpRequestParser(self)
        self.url = self.method = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.keep = self.complete = False
        self.version = ""

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        # Only now: at the end of a message without a body the parser has forgotten.
        self.method, self.version = self.parser.get_method(), self.parser.get_http_version()
        self.keep, self.complete = self.parser.should_keep_alive(), True


class ByteBudget:
    """Bytes of the bodies that are arriving on all connections of a listener."""

    def __init__(self, most: int) -> None:
        self._left = most

    def reserve(self, size: int) -> bool:
        """Whether there is room for a body of that size; it is taken until it is given back."""
        if size > self._left:
            return False
        self._left -= size
        return True

    def give_back(self, size: int) -> None:
        self._left += size


class HeadTable:
    """Heads that were taken before, by their bytes; emptied when full, or when what they mean has changed."""

    def __init__(self) -> None:
        self.heads: dict[bytes, RequestHead] = {}

    def keep(self, raw: bytes, head: RequestHead) -> None:
        """Keep a head whose like can be taken without looking: of a body of known length, and of no other protocol."""
        if len(raw) > LONGEST_KEPT or head.length is None or head.refusal is not None or not head.keep:
            return
        if head.expects or head.old or head.once or b"upgrade" in head.headers:
            return
        if len(self.heads) >= MOST_KEPT:
            self.heads.clear()
        self.heads[raw] = head

    def forget(self) -> None:
        """Whatever was known of them is looked at again."""
        self.heads.clear()
