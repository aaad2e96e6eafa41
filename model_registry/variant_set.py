"""Which variants answer under one name: the versions that were registered together, and what was measured of them.

``sets/<model>/<version>.json`` is written for each version of a registration, all the same. The set of a model is that
of its champion. A later registration of the same version may put it into another set.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from pydantic import AwareDatetime, Field, FiniteFloat, ValidationError

from model_registry.measurement import Better, Digest, Measurement
from model_registry.store import CorruptObject, Store
from model_registry.variant import Frozen, ModelName, NewerRecord, Record

MOST_MEMBERS = 8
"""That an endpoint holds beside each other; each has a process of its own."""
_log = logging.getLogger("winnow.release")


class SetMember(Frozen):
    """A version of a set."""

    version: int = Field(ge=1)
    digest: Digest
    name: str = Field(min_length=1, max_length=200)
    """Of its variant."""
    metric: str
    better: Better
    value: FiniteFloat
    """Of the metric, on the split that variants are chosen by."""
    p50_ms: FiniteFloat = Field(gt=0)
    """Median latency of one request, in milliseconds, where it was measured."""
    bytes: int = Field(ge=0)

    @classmethod
    def of(cls, version: int, measured: Measurement) -> SetMember:
        """The member that a measurement describes."""
        return cls(
            version=version,
            digest=measured.digest,
            name=measured.name[:200] or measured.digest[:12],
            metric=measured.metric.name,
            better=measured.metric.better,
            value=measured.metric.value,
            p50_ms=measured.p50_ms,
            bytes=measured.bytes,
        )


class VariantSet(Record):
    """Versions that were registered together."""

    model: ModelName
    members: tuple[SetMember, ...] = Field(min_length=1)
    at: AwareDatetime

    def beside(self, version: int) -> tuple[SetMember, ...]:
        """That version and the others, at most MOST_MEMBERS in all; the fastest where there are more."""
        others = sorted((m for m in self.members if m.version != version), key=lambda m: m.p50_ms)
        return (*(m for m in self.members if m.version == version), *others[: MOST_MEMBERS - 1])


class VariantSets:
    """Reads and writes the sets in a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def write(self, model: str, members: tuple[SetMember, ...]) -> VariantSet:
        """Make these the set of each of them."""
        made = VariantSet(model=model, members=members, at=datetime.now(UTC))
        for member in members:
            self._store.write_record(_key(model, member.version), made.to_json())
        return made

    def of(self, model: str, version: int) -> VariantSet | None:
        """The set of a version; None for one that was registered before sets were, or whose record is damaged.

        Raises:
            StoreUnavailable: the store cannot be asked.
        """
        key = _key(model, version)
        try:
            data = self._store.read_record(key)
            return None if data is None else VariantSet.from_json(data)
        except (NewerRecord, ValidationError, CorruptObject) as error:
            _log.warning("%s cannot be read, so that %s is served without others: %s", key, model, error)
            return None


def _key(model: str, version: int) -> str:
    return f"sets/{model}/{version:08d}.json"
