"""The variants that an endpoint serves beside the champion."""

from __future__ import annotations

from collections.abc import Callable

from model_registry.endpoint_client import Endpoint, EndpointError
from model_registry.ledger import Entry
from model_registry.store import Store, StoreError
from model_registry.variant_set import SetMember, VariantSets
from tasks.release.recorded_answers import check_recorded
from tasks.running.errors import EndpointUnhealthy

_TOLERANCE = 1e-3
"""Of the recorded answers, as for a release."""


class ChampionSet:
    """Of one model; ``warn`` is called with what of a set is not served."""

    def __init__(self, store: Store, endpoint: Endpoint, model: str, warn: Callable[[str], None]) -> None:
        self._store, self._endpoint, self._model, self._warn = store, endpoint, model, warn

    def complete(self, champion: Entry) -> None:
        """The other versions of the champion's set beside it, and nothing else. What of the set cannot be loaded is a
        warning: the champion answers without it."""
        found = VariantSets(self._store).of(self._model, champion.to_version)
        members = () if found is None else found.beside(champion.to_version)
        keep = {champion.to_version: champion.digest, **{member.version: member.digest for member in members}}
        held = {version.version: version.digest for version in self._endpoint.model(self._model).versions}
        for version, digest in held.items():
            if keep.get(version) != digest:
                self._endpoint.unload(self._model, version)
        there = [member for member in members if held.get(member.version) == member.digest or self._join(member)]
        self._endpoint.serve_set(self._model, there)

    def _join(self, member: SetMember) -> bool:
        """Load a version of the set and ask it for its recorded predictions; whether it may answer."""
        try:
            self._endpoint.load(self._model, member.version, member.digest, spare=True)
            check_recorded(self._store, self._endpoint, self._model, member.version, member.digest, _TOLERANCE)
        except (EndpointError, EndpointUnhealthy, StoreError) as trouble:
            self._warn(f"version {member.version}, of the champion's set, is not served: {trouble}")
            return False
        return True
