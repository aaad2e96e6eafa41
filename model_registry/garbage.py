"""What the store holds that nobody needs any more: found first, removed when somebody says so.

Kept for ever: the ledger, the numbers of versions, the records of runs and of test splits, and every variant that was
registered or ever served, with all that serving it, going back to it or proving it again takes. Kept for a number of
days: everything else, which is a cache: it is computed again when it is asked for. A blob goes when no record that
stays mentions its hash, sampled requests when they have been kept for as long as their file says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from model_registry.sample_files import sample_expired
from model_registry.store import CorruptObject, Store
from model_registry.variant import Frozen

_HASH = re.compile(rb"[0-9a-f]{64}")
_LASTING = ("ledger/", "versions/", "runs/", "test-uses/", "sets/", "ledger-steps/")
_BY_VARIANT = re.compile(r"(?:variants|measurements|recordings|targets)/([0-9a-f]{64})")
_SCRATCH = ("checkpoints/", "quarantine/", "unreadable/")
_DAY = 86_400.0
_GRACE_DAYS = 1.0
"""A blob is uploaded before the record that mentions it."""

Kind = Literal["results", "blobs", "scratch", "samples", "older versions of records"]


class GarbageItem(Frozen):
    """One object to be removed."""

    bucket: str
    key: str
    version: str | None = None
    """Of an object that was overwritten or deleted; None: the current one."""
    bytes: int
    kind: Kind


def find_garbage(store: Store, *, days: float, now: float) -> list[GarbageItem]:
    """Everything that may go.

    Args:
        days: what is younger stays, whatever it is.
        now: seconds since the epoch.

    Raises:
        StoreUnavailable, StoreDenied: the store cannot be asked.
    """
    records = list(store.inventory(store.records_bucket))
    plain = list(store.inventory(store.bucket))
    young = {key for key, _, at in records if now - at < days * _DAY}
    lasting = [key for key, _, _ in records if key.startswith(_LASTING)]
    with ThreadPoolExecutor(max_workers=8) as pool:
        content = dict(zip(lasting, pool.map(lambda key: _read(store, key), lasting), strict=True))
        wanted = _wanted(content)
        forms = [key for key, _, _ in records if key.startswith("targets/") and _variant_of(key) in wanted]
        for text in pool.map(lambda key: _read(store, key), forms):  # variants that run on another machine
            wanted |= {found.decode() for found in _HASH.findall(text)}
        stays = {key for key, _, _ in records if key in young or key in content or _variant_of(key) in wanted}
        rest = [key for key in stays if key not in content]
        texts = [*pool.map(lambda key: _read(store, key), rest), *(content[key] for key in content if key in young)]
    # Those in the record of a run of long ago name what it looked at, not what is needed.
    mentioned = {found.decode() for text in texts for found in _HASH.findall(text)} | wanted
    found = [
        GarbageItem(bucket=store.records_bucket, key=key, bytes=size, kind="results")
        for key, size, _ in records
        if key not in stays
    ]
    for key, size, at in plain:
        old = now - at >= days * _DAY
        if key.startswith("blobs/") and now - at >= _GRACE_DAYS * _DAY and key.rpartition("/")[2] not in mentioned:
            found.append(GarbageItem(bucket=store.bucket, key=key, bytes=size, kind="blobs"))
        elif key.startswith(_SCRATCH) and old:
            found.append(GarbageItem(bucket=store.bucket, key=key, bytes=size, kind="scratch"))
        elif sample_expired(key, now):
            found.append(GarbageItem(bucket=store.bucket, key=key, bytes=size, kind="samples"))
    found += [
        GarbageItem(bucket=store.records_bucket, key=key, version=version, bytes=size, kind="older versions of records")
        for key, version, size, at in store.older_versions(store.records_bucket)
        if now - at >= days * _DAY and not key.startswith("ledger/")
    ]
    return found


def registered_runs(store: Store) -> set[str]:
    """Ids of the runs that registered a version."""
    keys = store.list_records("runs/")
    with ThreadPoolExecutor(max_workers=8) as pool:
        records = zip(keys, pool.map(lambda key: _as_mapping(_read(store, key)), keys), strict=True)
        return {key.removeprefix("runs/").removesuffix(".json") for key, run in records if _registered(run)}


def remove_garbage(store: Store, garbage: Iterable[GarbageItem]) -> None:
    """Remove it, records before the blobs that they mention; stopped half-way, the rest is found again."""
    for item in sorted(garbage, key=lambda item: item.kind == "blobs"):
        store.remove(item.bucket, item.key, item.version)


def _read(store: Store, key: str) -> bytes:
    try:
        return store.read_record(key) or b""
    except CorruptObject:  # whoever needs it is told
        return b""


def _wanted(content: dict[str, bytes]) -> set[str]:
    """Digests of the variants that ever served or were registered, and of what those were compared with."""
    wanted: set[str] = set()
    for key, text in content.items():
        if key.startswith(("ledger/", "versions/")):
            wanted |= {found.decode() for found in _HASH.findall(text)}
        elif key.startswith("runs/"):
            run = _as_mapping(text)
            if _registered(run):
                named = [run.get("chosen"), run.get("baseline"), run.get("champion"), *(run.get("front") or ())]
                wanted |= {digest for digest in named if isinstance(digest, str)}
    return wanted


def _registered(run: dict[str, Any]) -> bool:
    return run.get("version") is not None or bool(run.get("front"))


def _as_mapping(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:  # damaged: it names nothing
        return {}
    return found if isinstance(found, dict) else {}


def _variant_of(key: str) -> str:
    found = _BY_VARIANT.match(key)
    return found[1] if found else ""
