"""What ``winnow up`` does about releases: where endpoint or MLflow do not say what the ledger says, they are had to."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from flows.commands.stack_status import shown_alias
from model_registry.endpoint_client import Endpoint, EndpointError, ServedModel
from model_registry.endpoint_rollout import EndpointRollout
from model_registry.ledger import Ledger, LedgerError
from model_registry.store import Store, StoreError

if TYPE_CHECKING:
    from model_registry.ledger import Entry

READING_SECONDS = 5.0
"""How long an endpoint that has just started may take until it has read the ledger."""


def settle_releases(store: Store, *, patience: float = READING_SECONDS) -> Iterator[str]:
    """What was done for each model where something was not as the ledger says, or was in the way: a line each."""
    ledger, champions, astray = Ledger(store), dict[str, "Entry"](), set[str]()
    for model in ledger.models():
        try:
            champion, pending = ledger.champion(model), ledger.pending(model)
        except LedgerError as error:
            yield f"{model}: {error}"
            continue
        if champion is not None:
            champions[model] = champion
        if pending is not None or (champion is not None and shown_alias(model) != champion.to_version):
            astray.add(model)
    try:
        astray |= _not_served(champions, patience)
    except EndpointError as error:
        yield f"what the endpoint serves cannot be told: {error}"
    for model in sorted(astray):
        if (under_way := _under_way(model)) is not None:
            yield f"{model}: version {under_way} is being rolled out; see `winnow rollout status {model}`"
            continue
        from tasks.release.deployment import reconcile  # where there is nothing to do it need not be imported

        try:
            yield f"{model}: {reconcile(store, model)}"
        except (EndpointError, StoreError) as error:
            yield f"{model}: {error}"


def _not_served(champions: dict[str, Entry], patience: float) -> set[str]:
    """Models for which the endpoint does not do what the ledger says, nor is about to load what it lacks."""
    deadline = time.monotonic() + patience
    with Endpoint.from_environment() as endpoint:
        while True:
            served = {one.model: one for one in endpoint.models()}
            if champions.keys() <= served.keys() or time.monotonic() > deadline:
                return {name for name, entry in champions.items() if _strays(served.get(name), entry)}
            time.sleep(0.2)


def _under_way(model: str) -> int | None:
    """The version that somebody is rolling out, who will see it through."""
    try:
        with Endpoint.from_environment() as endpoint:
            state = EndpointRollout(endpoint, model).state()
    except EndpointError:  # said by whoever tries to settle it
        return None
    return state.version if state is not None and state.going else None


def _strays(served: ServedModel | None, champion: Entry) -> bool:
    if served is None or served.serves(champion.to_version, champion.digest):
        return served is None
    return served.serving is not None or served.digest_of(champion.to_version) == champion.digest
