"""The keys as the endpoint uses them: looked up, limited in their rate, taken over while it runs when they change."""

from __future__ import annotations

import hmac
import logging
import time
from pathlib import Path

from model_registry.api_keys import Action, ApiKey, KeyFile, KeySet, KeysUnreadable
from serving.exceptions import Forbidden, TooManyRequests, Unauthorized

log = logging.getLogger("winnow.serving")
_ADMIN = ApiKey(id="0" * 8, name="the admin token", digest="0" * 64)


class Principal:
    """Who asks: a key, and when it may ask again.

    The rate is kept by the generic cell rate algorithm (ITU-T I.371, annex A): one time per key, exact, and without a
    window at whose edge twice as much comes through.
    """

    def __init__(self, key: ApiKey) -> None:
        self.key = key
        self._allowed_at = 0.0

    def require(self, action: Action, model: str) -> None:
        """Raise Unauthorized where the key has ended, Forbidden where it may not do that."""
        if self.key.expires is not None and time.time() > self.key.expires:
            raise Unauthorized(f"the key {self.key.id} has expired; ask for another one")
        if not self.key.allows(action, model):
            what = f"{action} model {model!r}" if model else action
            raise Forbidden(f"the key {self.key.id} may not {what}; ask for one that may")

    def spend(self) -> None:
        """Count one request. Raises TooManyRequests, with the time after which the next one is taken."""
        rate = self.key.rate
        if rate is None:
            return
        now, each = time.monotonic(), 1.0 / rate
        expected = max(self._allowed_at, now)
        early = expected - now - (self.key.burst - 1) * each
        if early > 1e-9:
            raise TooManyRequests(
                f"the key {self.key.id} may send {rate:g} requests per second, {self.key.burst} at once", early
            )
        self._allowed_at = expected + each


class KeyRing:
    """Finds who asks.

    Args:
        path: of the file of the keys; without one, everybody may ask (the endpoint then listens on loopback only).
        admin_token: asks for everything too, for the pipeline tries what it releases.

    Attributes:
        fault: why the keys on disk could not be taken over; the ones before stay.
    """

    def __init__(self, path: Path, admin_token: str = "") -> None:
        self._file = KeyFile(path)
        self._admin = f"Bearer {admin_token}".encode() if admin_token else b""
        self._administrator = Principal(_ADMIN)
        self._seen: tuple[int, int, int] | None = (0, 0, 0)
        self._keys: KeySet | None = None
        self._principals: dict[str, Principal] = {}
        self._found: dict[bytes, Principal] = {}
        self.fault = ""
        self.reload()

    @property
    def wanted(self) -> bool:
        """Whether a key is needed."""
        return self._keys is not None or bool(self.fault)

    def reload(self) -> bool:
        """Take over the file if it has changed; whether it had."""
        try:
            status = self._file.path.stat()
            seen = (status.st_mtime_ns, status.st_ino, status.st_size)
        except FileNotFoundError:
            seen = None
        if seen == self._seen:
            return False
        self._seen = seen
        try:
            keys = self._file.read()
        except (KeysUnreadable, OSError) as error:
            self.fault = str(error)
            log.error("the keys stay as they were: %s", error)
            return True
        if keys is None and self._keys is not None:
            log.error("the file of the keys is gone: no key is taken until it is there again")
            keys = self._keys.model_copy(update={"keys": ()})
        self.fault, self._keys, self._found = "", keys, {}
        before = self._principals
        self._principals = {key.digest: _kept(before.get(key.digest), key) for key in (keys.keys if keys else ())}
        return True

    def find(self, authorization: bytes) -> Principal:
        """Who sends this header.

        Raises:
            Unauthorized: nobody who is known.
        """
        found = self._found.get(authorization)
        if found is None:
            found = self._look_up(authorization)
        if found is None:
            raise Unauthorized("send the header 'Authorization: Bearer KEY' with a key of this endpoint")
        return found

    def _look_up(self, authorization: bytes) -> Principal | None:
        if self._admin and hmac.compare_digest(authorization, self._admin):
            return self._administrator
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
