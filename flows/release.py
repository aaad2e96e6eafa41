"""Release without a run: promote any registered version, or roll back. The same protocol as at the end of a run."""

from __future__ import annotations

import os

from prefect import flow

from model_registry.ledger import Ledger
from model_registry.registry import Registry, VersionMissing
from model_registry.store import DEFAULT_URI, Store
from tasks.release.deploy import Deployment, DeploySpec, deploy, reconcile


@flow(name="promote", persist_result=False)
def promote(model: str, version: int) -> Deployment:
    """Put a registered version into service, whatever its gates said when it was made.

    Raises:
        VersionMissing: there is no such version, or it is not one of ours.
        EndpointUnhealthy: it does not load or answer as it was recorded; the champion keeps serving.
    """
    store = _store()
    registered = Registry.from_environment().version(model, version)
    if not registered.digest:
        raise VersionMissing(
            f"version {version} of model {model!r} has no tag winnow.digest: it was registered by somebody else and "
            "has no variant in the store; promote a version that a pipeline run made"
        )
    reconcile(store, model)
    return deploy(store.uri, model, DeploySpec(), version=version, digest=registered.digest)


@flow(name="rollback", persist_result=False)
def rollback(model: str) -> Deployment:
    """Put the champion before the present one back into service; once more goes one further back.

    Raises:
        NothingToRollBack: the champion is the first one, or there is none.
        EndpointUnhealthy: it does not load or answer as it was recorded; the champion keeps serving.
    """
    store = _store()
    reconcile(store, model)
    ledger = Ledger(store)
    target, champion = ledger.rollback_target(model), ledger.champion(model)
    return deploy(
        store.uri,
        model,
        DeploySpec(),
        version=target.to_version,
        digest=target.digest,
        kind="rollback",
        champion_seq=champion.seq if champion else 0,
    )


def _store() -> Store:
    store = Store(os.environ.get("WINNOW_STORE", DEFAULT_URI))
    store.ping()
    return store
