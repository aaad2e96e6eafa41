"""Keys of the endpoint's clients, as they are kept: nobody who reads the file can use one.

A key is ``wk_`` with 256 random bits, so a keyed hash (HMAC-SHA256) is enough: there is nothing to guess that a slow
hash would make slower. The file is JSON, mode 0600, and replaced whole, so that a running endpoint can read it at any
time.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from model_registry.variant import Record

Action = Literal["infer", "read"]
PREFIX = "wk_"
EVERY_MODEL = "*"


class KeysUnreadable(Exception):
    """The file of the keys is not what Winnow wrote; the text says where it lies and what to do."""


class ApiKey(Record):
    """What is kept of a key.

    ``models``: that it is for, ``*`` for all; ``actions``: ``infer`` asks for predictions, ``read`` for metadata and
    statistics. ``rate``: requests per second, None for any number, of which ``burst`` may come at once. ``exact``: it
    takes no cheaper variant when there is much to do. ``tokens``: of texts that are continued, a minute, prompts and
    answers together; None for any number. ``unsampled``: its requests are never kept for monitoring.
    ``expires`` and ``created``: seconds since 1970.
    """

    id: str = Field(pattern=r"^[0-9a-f]{8}$")
    name: str = Field(min_length=1, max_length=100)
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    models: tuple[str, ...] = (EVERY_MODEL,)
    actions: tuple[Action, ...] = ("infer", "read")
    rate: float | None = Field(default=None, gt=0)
    burst: int = Field(default=1, ge=1)
    tokens: float | None = Field(default=None, gt=0)
    expires: float | None = None
    exact: bool = False
    unsampled: bool = False
    created: float = 0.0

    def allows(self, action: Action, model: str) -> bool:
        """Whether it may do that with the model; ``""`` for no model in particular."""
        return action in self.actions and (not model or EVERY_MODEL in self.models or model in self.models)


class KeySet(Record):
    """All keys, and the secret under which they are hashed."""

    secret: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)
    keys: tuple[ApiKey, ...] = ()

    def digest_of(self, key: str | bytes) -> str:
        """Under which a key's text is found."""
        text = key if isinstance(key, bytes) else key.encode()
        return hmac.new(bytes.fromhex(self.secret), text, hashlib.sha256).hexdigest()


class KeyFile:
    """The keys on disk.

    Args:
        path: of the file; made by the first key.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> KeySet | None:
        """The keys; None where there is no file.

        Raises:
            KeysUnreadable: it is damaged, or others may read it.
        """
        try:
            status, data = self.path.stat(), self.path.read_bytes()
        except FileNotFoundError:
            return None
        # What another user owns, we cannot write or chmod: a Secret that Kubernetes mounts is root's, and readable by
        # a group. Nobody can use a key who reads it; only others must not write it.
        if status.st_mode & (0o077 if status.st_uid == os.geteuid() else 0o022):
            raise KeysUnreadable(f"{self.path} is open to others; chmod 600 {self.path}")
        try:
            return KeySet.model_validate_json(data)
        except ValidationError as error:
            what = error.errors()[0]
            place = ".".join(map(str, what["loc"])) or "the whole"
            raise KeysUnreadable(
                f"{self.path} is damaged ({place}: {what['msg']}); restore it, or remove it"
            ) from error

    def add(
        self,
        name: str,
        *,
        models: tuple[str, ...] = (EVERY_MODEL,),
        actions: tuple[Action, ...] = ("infer", "read"),
        rate: float | None = None,
        burst: int | None = None,
        tokens: float | None = None,
        exact: bool = False,
        unsampled: bool = False,
        days: float | None = None,
    ) -> tuple[ApiKey, str]:
        """Make a key; what is kept of it, and its text, which nobody can tell again.

        Args:
            days: after which it ends; None: never.
        """
        with self._locked() as found:
            text, now = PREFIX + secrets.token_urlsafe(32), time.time()
            key = ApiKey(
                id=secrets.token_hex(4),
                name=name,
                digest=found.digest_of(text),
                models=models,
                actions=actions,
                rate=rate,
                burst=burst or max(1, round(rate or 1)),
                tokens=tokens,
                exact=exact,
                unsampled=unsampled,
                expires=None if days is None else now + 86_400 * days,
                created=now,
            )
            self._write(found.model_copy(update={"keys": (*found.keys, key)}))
        return key, text

    def revoke(self, id_: str) -> ApiKey | None:
        """End a key; None where there is no such one. The file stays, so that the endpoint does not open itself."""
        with self._locked() as found:
            gone = next((key for key in found.keys if key.id == id_), None)
            if gone is not None:
                self._write(found.model_copy(update={"keys": tuple(key for key in found.keys if key.id != id_)}))
        return gone

    @contextmanager
    def _locked(self) -> Iterator[KeySet]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = self.path.with_suffix(".lock")
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(lock, flags, 0o600), "wb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield self.read() or KeySet(secret=secrets.token_hex(32))

    def _write(self, keys: KeySet) -> None:
        partial = self.path.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(keys.model_dump_json(indent=1).encode())
            stream.flush()
            os.fsync(stream.fileno())
        partial.rename(self.path)
