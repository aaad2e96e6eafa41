"""The public keys of an issuer of tokens (a JWKS, RFC 7517), from a file or a URL, taken over while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

_REFRESH_SECONDS = 300.0
_AGAIN_SECONDS = 10.0
"""Between two readings that a key asks for which is not known: else strangers could have the issuer flooded."""
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
_ANSWER_SECONDS = 10.0
_LONGEST = 1 << 20
_WRITABLE_BY_OTHERS = 0o022
log = logging.getLogger("winnow.serving")
K = TypeVar("K")


class IssuerKeysUnusable(Exception):
    """The key set cannot be read or holds no key that can be used; the text says which and what to do."""


class IssuerKeys(Generic[K]):
    """An issuer's keys as they were read last.

    Args:
        source: path of a file, or an http(s) URL.
        parse: makes the keys of the text; raises IssuerKeysUnusable.

    Attributes:
        keys: None before they were read for the first time.
        fault: why they could not be read the last time; those before stay.

    Raises:
        IssuerKeysUnusable: a file that cannot be used. A URL is read only by :meth:`keep`.
    """

    def __init__(self, source: str, parse: Callable[[bytes], K]) -> None:
        self._source, self._parse = source, parse
        self._path = None if is_url(source) else Path(source)
        self.keys: K | None = None
        self.fault = "" if self._path is not None else "they have not been read yet"
        self._text = b""
        self._seen: tuple[int, ...] | None = None
        self._changed = False
        self._again = asyncio.Event()
        self._read_at = float("-inf")
        if self._path is not None:
            self._seen = _signature(self._path)
            self._take(_read_file(self._path))
            self._changed = False

    def reload(self) -> bool:
        """Take over a file that has changed; whether there are other keys than at the last call, of a URL too."""
        if self._path is not None and (seen := _signature(self._path)) != self._seen:
            self._seen = seen
            try:
                self._take(_read_file(self._path))
            except IssuerKeysUnusable as error:
                self._fails(error)
        changed, self._changed = self._changed, False
        return changed

    def ask_again(self) -> bool:
        """Have a URL read again, for a key is wanted that is not there; whether that may bring it."""
        if self._path is not None:
            return False
        if not self._again.is_set() and time.monotonic() - self._read_at < _AGAIN_SECONDS:
            return False
        self._again.set()
        return True

    async def keep(self) -> None:
        """Read a URL again and again; comes back at once for a file, which :meth:`reload` looks after."""
        pause = _FIRST_PAUSE
        while self._path is None:
            try:
                self._take(await asyncio.to_thread(_fetch, self._source))
            except IssuerKeysUnusable as error:
                self._fails(error)
            self._read_at = time.monotonic()
            self._again.clear()
            if self.fault:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            pause = _FIRST_PAUSE
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_REFRESH_SECONDS):  # Python 3.11's wait_for may lose a cancellation
                    await self._again.wait()

    def _take(self, text: bytes) -> None:
        if text != self._text:
            self.keys = self._parse(text)
            self._text, self._changed = text, True
        self.fault = ""

    def _fails(self, error: IssuerKeysUnusable) -> None:
        if str(error) != self.fault:  # once, not every few seconds
            log.error("the issuer's keys stay as they were: %s", error)
        self.fault = str(error)


def is_url(source: str) -> bool:
    """Whether it is no path."""
    return source.lower().startswith(("https://", "http://"))


def is_encrypted(source: str) -> bool:
    """Whether nobody on the way can change what is read there."""
    host = urlsplit(source).hostname or ""
    return source.lower().startswith("https://") or host in ("localhost", "127.0.0.1", "::1")


def _signature(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size, status.st_mode


def _read_file(path: Path) -> bytes:
    try:
        mode = path.stat().st_mode
        text = path.read_bytes()
    except OSError as error:
        raise IssuerKeysUnusable(f"{path} cannot be read: {error.strerror}") from error
    if mode & _WRITABLE_BY_OTHERS:  # who writes there decides who may ask
        raise IssuerKeysUnusable(f"{path} can be written by others; chmod 644 {path}")
    return text


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Keys come from where they were said to come from: a redirection could lead anywhere, off TLS too."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _fetch(url: str) -> bytes:
    end = time.monotonic() + _ANSWER_SECONDS
    opener = urllib.request.build_opener(_NoRedirect())
    request = urllib.request.Request(url, headers={"accept": "application/json"})
    try:
        with opener.open(request, timeout=_ANSWER_SECONDS) as answer:
            text = b""
            while len(text) <= _LONGEST and (piece := answer.read1(1 << 16)):
                text += piece
                if time.monotonic() > end:
                    raise IssuerKeysUnusable(f"the answer of {url} did not come within {_ANSWER_SECONDS:g} s")
    except urllib.error.HTTPError as error:
        with error:
            raise IssuerKeysUnusable(f"{url} answered with status {error.code}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        why = getattr(error, "reason", None) or error or type(error).__name__
        raise IssuerKeysUnusable(f"{url} cannot be read: {why}") from error
    if len(text) > _LONGEST:
        raise IssuerKeysUnusable(f"{url} answered with more than {_LONGEST} bytes, which is no key set")
    return text
