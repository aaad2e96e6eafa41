"""Which versions are released: what the ledger says, what is pinned or remembered, as the endpoint needs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from model_registry.ledger import Ledger, LedgerError
from model_registry.store import Store
from model_registry.variant_set import SetMember, VariantSets
from serving.pinned_models import PinnedVersion


class ServedChampion(Protocol):
    """A ledger entry, as far as the endpoint needs it."""

    @property
    def to_version(self) -> int: ...

    @property
    def digest(self) -> str: ...


class LedgerReader(Protocol):
    """The ledger, as far as the endpoint needs it; blocking."""

    def models(self) -> list[str]: ...

    def champion(self, model: str, /) -> ServedChampion | None: ...

    def members(self, model: str, version: int, /) -> Sequence[SetMember]:
        """Of the set that a version was registered in, itself included; empty for none."""


class StoredReleases:
    """What the store says of releases and sets."""

    def __init__(self, store: Store) -> None:
        ledger = Ledger(store)
        self.models, self.champion, self._sets = ledger.models, ledger.champion, VariantSets(store)

    def members(self, model: str, version: int, /) -> Sequence[SetMember]:
        found = self._sets.of(model, version)
        return () if found is None else found.beside(version)


class Released(NamedTuple):
    """Of a model: its champion, or what is wrong with its ledger; and the set of that version."""

    champion: ServedChampion | LedgerError
    members: Sequence[SetMember] = ()

    def to_json(self) -> dict[str, Any]:
        """For another process."""
        if isinstance(self.champion, LedgerError):
            return {"error": str(self.champion)}
        members = [member.model_dump(mode="json") for member in self.members]
        return {"version": self.champion.to_version, "digest": self.champion.digest, "members": members}

    @classmethod
    def from_json(cls, model: str, said: Mapping[str, Any]) -> Released:
        """The reverse."""
        if "error" in said:
            return cls(LedgerError(said["error"]))
        members = tuple(map(SetMember.model_validate, said["members"]))
        return cls(PinnedVersion(model, said["version"], said["digest"]), members)


ReadReleases = Callable[[], dict[str, Released]]
"""Says by model what is to be served, as :func:`read_releases` does; blocking."""


def read_releases(book: LedgerReader) -> dict[str, Released]:
    """What is to be served, by model; models never released are left out.

    Raises:
        StoreError, LedgerError: nothing can be read. What is wrong with one model's ledger alone is in its place.
    """
    found: dict[str, Released] = {}
    for model in book.models():
        try:
            champion = book.champion(model)
        except LedgerError as error:
            found[model] = Released(error)
        else:
            if champion is not None:
                found[model] = Released(champion, book.members(model, champion.to_version))
    return found


def stored_releases() -> dict[str, Released]:
    """What the store of our environment says is to be served; raises as :func:`read_releases`."""
    return read_releases(StoredReleases(Store.from_environment()))
