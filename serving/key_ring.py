"""The keys as the endpoint uses them: looked up, limited in their rate, taken over while it runs when they change."""

from __future__ import annotations

import hmac
import logging
import time
from pathlib import Path
from typing import Protocol

from model_registry.api_keys import Action, ApiKey, KeyFile, KeySet, KeysUnreadable
from serving.exceptions import Forbidden, TooManyRequests, Unauthorized

log = logging.getLogger("winnow.serving")
_ADMIN = ApiKey(id="0" * 8, name="the admin token", digest="0" * 64)


class Pace:
    """When the next request may come.

    The rate is kept by the generic cell rate algorithm (ITU-T I.371, annex A): one time, exact, and without a window at
    whose edge twice as much comes through.
    """

    def __init__(self) -> None:
        self._allowed_at = self._paid_at = 0.0

    @property
    def idle(self) -> bool:
        """Whether it is as good as a new one."""
        return max(self._allowed_at, self._paid_at) <= time.monotonic()

    def owe(self, tokens: int, per_minute: float) -> None:
        """Count tokens; how many a request takes is only known once it has them."""
        self._paid_at = max(self._paid_at, time.monotonic()) + 60 * tokens / per_minute

    def owing(self) -> float:
        """Seconds until what is owed is no more than a minute's share."""
        return self._paid_at - time.monotonic() - 60

    def spend(self, rate: float, burst: int) -> float:
        """Count one request; the seconds by which it came too early, and is not counted, else 0."""
        now, each = time.monotonic(), 1.0 / rate
        expected = max(self._allowed_at, now)
        early = expected - now - (burst - 1) * each
        if early > 1e-9:
            return early
        self._allowed_at = expected + each
        return 0.0


class Principal:
    """Who asks: a key, and when it may ask again.

    Args:
        pace: shared with others that are counted together; None: its own.
        kind: what it sends, for people; ``key`` is named by its id, what ends in ``of`` by its name.
    """

    def __init__(self, key: ApiKey, pace: Pace | None = None, *, kind: str = "key") -> None:
        self.key, self._pace, self._kind = key, pace or Pace(), kind

    def __str__(self) -> str:
        return f"the {self._kind} {self.key.id if self._kind == 'key' else repr(self.key.name)}"

    def require(self, action: Action, model: str) -> None:
        """Raise Unauthorized where the key has ended, Forbidden where it may not do that."""
        if self.key.expires is not None and time.time() > self.key.expires:
            raise Unauthorized(f"{self} has expired; ask for another one")
        if not self.key.allows(action, model):
            what = f"{action} model {model!r}" if model else action
            raise Forbidden(f"{self} may not {what}; ask for one that may")

    def spend(self) -> None:
        """Count one request. Raises TooManyRequests, with the time after which the next one is taken."""
        rate = self.key.rate
        if rate is None:
            return
        early = self._pace.spend(rate, self.key.burst)
        if early > 0:
            raise TooManyRequests(f"{self} may send {rate:g} requests per second, {self.key.burst} at once", early)

    def owe(self, tokens: int) -> None:
        """Count tokens that were read or said."""
        if self.key.tokens is not None:
            self._pace.owe(tokens, self.key.tokens)

    def require_tokens(self) -> None:
        """Raise TooManyRequests where more than a minute's share of tokens is owed."""
        early = self._pace.owing() if self.key.tokens is not None else 0
        if early > 0:
            raise TooManyRequests(f"{self} may have {self.key.tokens:g} tokens a minute", early)


class TokenFinder(Protocol):
    """Finds who sends a token that is no key; see :class:`serving.issuer_tokens.IssuerTokens`."""

    @property
    def fault(self) -> str: ...

    @property
    def missing(self) -> bool: ...

    def reload(self) -> bool: ...

    def find(self, token: bytes, /) -> Principal: ...

    async def keep(self) -> None: ...


class KeyRing:
    """Finds who asks.

    Args:
        path: of the file of the keys; without one, everybody may ask (the endpoint then listens on loopback only).
        admin_token: asks for everything too, for the pipeline tries what it releases.
        tokens: who else is known; then nobody may ask without a key or a token.

    Attributes:
        fault: why the keys on disk could not be taken over; the ones before stay.
    """

    def __init__(self, path: Path, admin_token: str = "", tokens: TokenFinder | None = None) -> None:
        self._file, self._tokens = KeyFile(path), tokens
        self._admin = f"Bearer {admin_token}".encode() if admin_token else b""
        self._administrator = Principal(_ADMIN)
        self._seen: tuple[int, ...] | None = (0,)
        self._keys: KeySet | None = None
        self._principals: dict[str, Principal] = {}
        self._found: dict[bytes, Principal] = {}
        self.fault = ""
        self.reload()

    @property
    def wanted(self) -> bool:
        """Whether a key is needed."""
        return self._keys is not None or bool(self.fault) or self._tokens is not None

    @property
    def faults(self) -> dict[str, str]:
        """Why ``keys`` and ``issuer`` (its keys) could not be taken over; those before stay. Empty where they were."""
        return {"keys": self.fault, "issuer": "" if self._tokens is None else self._tokens.fault}

    @property
    def not_ready(self) -> str:
        """Why nobody with a token can be let in yet; empty where there is no reason."""
        missing = self._tokens is not None and self._tokens.missing
        return "the keys of the tokens' issuer could not be read yet" if missing else ""

    async def keep(self) -> None:
        """Look after what has to be fetched."""
        if self._tokens is not None:
            await self._tokens.keep()

    def reload(self) -> bool:
        """Take over what has changed, of the file and of the issuer; whether anything had."""
        changed = self._tokens is not None and self._tokens.reload()
        return self._reload_file() or changed

    def _reload_file(self) -> bool:
        try:
            seen = self._signature()
            if seen == self._seen:
                return False
            keys = self._file.read()
        except (KeysUnreadable, OSError) as error:
            if isinstance(error, KeysUnreadable):  # anything else may pass without a change of the file
                self._seen = seen
            if str(error) == self.fault:
                return False
            self.fault = str(error)
            log.error("the keys stay as they were: %s", error)
            return True
        self._seen, self.fault = seen, ""
        if keys is None and self._keys is not None:
            self.fault = f"{self._file.path} is gone: no key is taken until it is there again"
            log.error("%s", self.fault)
            keys = self._keys.model_copy(update={"keys": ()})
        self._keys, self._found = keys, {}
        before = self._principals
        self._principals = {key.digest: _kept(before.get(key.digest), key) for key in (keys.keys if keys else ())}
        return True

    def _signature(self) -> tuple[int, ...] | None:
        try:
            status = self._file.path.stat()
        except FileNotFoundError:
            return None
        # With the mode: closing the file to others changes nothing else of it.
        return status.st_mtime_ns, status.st_ino, status.st_size, status.st_mode

    def find(self, authorization: bytes) -> Principal:
        """Who sends this header.

        Raises:
            Unauthorized: nobody who is known.
        """
        found = self._found.get(authorization)
        if found is None:
            found = self._look_up(authorization)
        if found is None:
            what = "KEY' with a key" if self._tokens is None else "TOKEN' with a key or a token"
            raise Unauthorized(f"send the header 'Authorization: Bearer {what} of this endpoint")
        return found

    def _look_up(self, authorization: bytes) -> Principal | None:
        if self._admin and hmac.compare_digest(authorization, self._admin):
            return self._administrator
        if self._tokens is not None and authorization.startswith(b"Bearer ") and authorization.count(b".") == 2:
            return self._tokens.find(authorization[7:])
        if self._keys is None or not authorization.startswith(b"Bearer "):
            return None
        found = self._principals.get(self._keys.digest_of(authorization[7:]))
        if found is not None:
            self._found[authorization] = found
        return found


def _kept(before: Principal | None, key: ApiKey) -> Principal:
    """The same principal as before, so that a change of the file gives nobody a new burst."""
    if before is None:
        return Principal(key)
    before.key = key
    return before
