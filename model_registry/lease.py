"""A lease in S3: one holder at a time, taken over when the holder dies.

The object ``leases/<key>.json`` names the holder. It is created with If-None-Match and only ever replaced with
If-Match, so two takers cannot both win; its generation grows with every holder. The holder renews it every few
seconds. Whoever waits takes it over when it has not changed for its whole lifetime *by the waiter's own clock*
(the clocks of two machines are never compared), or at once when the holder is a dead process of this machine.
A released lease stays behind as a marker without holder: S3 has no delete-if-match that every server knows, and a
plain delete could remove the next holder's lease.
"""

from __future__ import annotations

import logging
import random
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pydantic import ValidationError

from model_registry.owner import Owner
from model_registry.store import Store, StoreError
from model_registry.variant import Record

LIFETIME_SECONDS = 15.0
RENEWAL_SECONDS = 4.0
_POLL_SECONDS = 0.5
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)*")
_log = logging.getLogger(__name__)


class LeaseBusy(StoreError):
    """Somebody else holds the lease and did not let go in the time given; names the holder."""


class LeaseLost(StoreError):
    """The lease was taken over, or could not be renewed before it ran out: stop, another may be at work."""


class LeaseRecord(Record):
    """What the object says. ``holder`` is None once released; ``token`` tells two holds of one process apart."""

    key: str
    generation: int
    holder: Owner | None
    token: str
    renewals: int = 0


OnWait = Callable[[Owner | None, float], None]
"""Called at every poll with the present holder (None: unreadable) and the seconds waited; may raise to give up."""


class Held:
    """A lease that this process holds; :meth:`check` before every step that must not be done twice."""

    def __init__(self, store: Store, record: LeaseRecord, since: float, lifetime: float) -> None:
        self._store, self._record, self._lifetime = store, record, lifetime
        self._renewed = since  # monotonic time at the start of the last write that we know to have succeeded
        self._taken_by: str | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def generation(self) -> int:
        """Grows by one with every holder of this key."""
        return self._record.generation

    def check(self) -> None:
        """Return while the lease is surely ours.

        Raises:
            LeaseLost: another process took it, or it was not renewed within its lifetime.
        """
        key = self._record.key
        if self._taken_by is not None:
            raise LeaseLost(f"lease {key!r} was taken over by {self._taken_by}; nothing more is done here")
        silent = time.monotonic() - self._renewed
        if silent > self._lifetime:
            raise LeaseLost(
                f"lease {key!r} was not renewed for {silent:.0f} s (limit {self._lifetime:.0f} s): "
                "the store or this process stood still; run again"
            )

    def _keep(self, every: float) -> None:
        while not self._stop.wait(every):
            try:
                if not self._renew():
                    return
            except StoreError as error:  # may pass; check() tells when it lasted too long
                _log.warning("lease %s not renewed yet: %s", self._record.key, error)

    def _renew(self) -> bool:
        started = time.monotonic()
        renewed = self._record.model_copy(update={"renewals": self._record.renewals + 1})
        if not _replace_own(self._store, renewed):
            self._taken_by = _holder_name(self._store, renewed.key)
            return False
        self._record, self._renewed = renewed, started
        return True

    def _start(self, every: float) -> None:
        self._thread = threading.Thread(target=self._keep, args=(every,), name="lease-renewal", daemon=True)
        self._thread.start()

    def _end(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=2)  # a renewal still under way loses against the new etag
        marker = self._record.model_copy(update={"holder": None, "renewals": self._record.renewals + 1})
        try:
            _replace_own(self._store, marker)
        except StoreError as error:
            _log.warning("lease %s not released, it will run out by itself: %s", self._record.key, error)


@contextmanager
def lease(
    store: Store,
    key: str,
    *,
    wait_seconds: float = 0.0,
    on_wait: OnWait | None = None,
    lifetime: float = LIFETIME_SECONDS,
    renewal: float = RENEWAL_SECONDS,
) -> Iterator[Held]:
    """Hold ``leases/<key>.json`` for the body, waiting up to ``wait_seconds`` for another holder to finish or die.

    Raises:
        LeaseBusy: the other holder lives and ``wait_seconds`` are over.
        StoreUnavailable: the store does not answer while we try to take it.
    """
    if not _KEY.fullmatch(key):
        raise ValueError(f"lease key {key!r} must be words of letters, digits, '.', '_' and '-' separated by '/'")
    held = _acquire(store, key, wait_seconds, on_wait, lifetime)
    try:
        held._start(renewal)
        yield held
    finally:  # also on KeyboardInterrupt
        held._end()


def read_lease(store: Store, key: str) -> LeaseRecord | None:
    """The lease as it stands; None if nobody ever held it or it cannot be read."""
    found = store.get_with_etag(_path(key))
    return None if found is None else _parse(found[0])


def _acquire(store: Store, key: str, wait_seconds: float, on_wait: OnWait | None, lifetime: float) -> Held:
    owner, token, path = Owner.current(), secrets.token_hex(8), _path(key)
    began = time.monotonic()
    seen_etag, seen_at = "", began
    while True:
        now = time.monotonic()
        found = store.get_with_etag(path)
        present = None if found is None else _parse(found[0])
        if found is not None and found[1] != seen_etag:
            seen_etag, seen_at = found[1], now
        if present is not None and present.token == token:
            return Held(store, present, now, lifetime)  # our write arrived although its answer was lost
        if found is None or _free(present, unchanged=now - seen_at, lifetime=lifetime):
            generation = 1 + (present.generation if present is not None else 0)
            record = LeaseRecord(key=key, generation=generation, holder=owner, token=token)
            if found is None:
                won = store.put_if_absent(path, record.to_json())
            else:
                won = store.put_if_match(path, record.to_json(), found[1])
            if won:
                return Held(store, record, now, lifetime)
            continue
        waited = time.monotonic() - began
        holder = None if present is None else present.holder
        if waited >= wait_seconds:
            name = holder or "an unreadable record"
            raise LeaseBusy(f"lease {key!r} is held by {name}; waited {waited:.0f} s for it")
        if on_wait is not None:
            on_wait(holder, waited)
        # Jitter, so that several who wait do not ask in step.
        time.sleep(min(_POLL_SECONDS * random.uniform(0.5, 1.5), max(wait_seconds - waited, 0.01)))


def _free(present: LeaseRecord | None, *, unchanged: float, lifetime: float) -> bool:
    if present is not None and (present.holder is None or present.holder.provably_dead()):
        return True
    return unchanged > lifetime  # also heals a record that cannot be read


def _replace_own(store: Store, record: LeaseRecord) -> bool:
    """Replace our record by the next state of it; False if the lease is no longer ours."""
    path = _path(record.key)
    while True:
        found = store.get_with_etag(path)
        present = None if found is None else _parse(found[0])
        if found is None or present is None or present.token != record.token:
            return False
        if present == record or store.put_if_match(path, record.to_json(), found[1]):
            return True


def _holder_name(store: Store, key: str) -> str:
    present = read_lease(store, key)
    return str(present.holder) if present is not None and present.holder is not None else "somebody who is gone again"


def _path(key: str) -> str:
    return f"leases/{key}.json"


def _parse(data: bytes) -> LeaseRecord | None:
    try:
        return LeaseRecord.from_json(data)
    except ValidationError:
        return None
