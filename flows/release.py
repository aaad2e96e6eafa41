"""Release without a run: promote any registered version, or roll back. The same protocol as at the end of a run.

Store and endpoint are enough for it: MLflow is had to follow if it answers, and Prefect has no part in it.
"""

from __future__ import annotations

import logging

from model_registry.ledger import Ledger
from model_registry.mlflow_rest import RegistryError
from model_registry.rollout_plan import RolloutPlan
from model_registry.store import Store
from model_registry.versions import VersionMissing, Versions
from tasks.release.deployment import Deployment, DeploySpec, mlflow_view, put_into_service, reconcile
from tasks.release.ledger_protocol import patiently

_log = logging.getLogger("winnow.release")


def promote(model: str, version: int, plan: RolloutPlan | None = None) -> Deployment:
    """Put a registered version into service, whatever its gates said when it was made.

    Args:
        plan: how it takes over the traffic step by step; None: at once.

    Raises:
        VersionMissing: there is no such version, or it is not one of ours.
        EndpointUnhealthy: it does not load or answer as it was recorded; the champion keeps serving.
    """
    store = _store()
    digest, spec = variant_of(store, model, version), DeploySpec(rollout=plan)
    return patiently(lambda: put_into_service(store, model, spec, version=version, digest=digest))


def rollback(model: str) -> Deployment:
    """Put the champion before the present one back into service; once more goes one further back.

    Raises:
        NothingToRollBack: the champion is the first one, or there is none.
        EndpointUnhealthy: it does not load or answer as it was recorded; the champion keeps serving.
    """
    store = _store()
    ledger, versions = Ledger(store), Versions(store)
    if ledger.pending(model) is not None:
        patiently(lambda: reconcile(store, model))
    target, champion = ledger.rollback_target(model), ledger.champion(model)
    # Its own number may be another variant's by now, where MLflow was lost before we kept the numbers ourselves.
    version = versions.find(model, target.digest) or versions.add(model, target.digest)
    return patiently(
        lambda: put_into_service(
            store,
            model,
            DeploySpec(),
            version=version,
            digest=target.digest,
            kind="rollback",
            champion_seq=champion.seq if champion else 0,
        )
    )


def variant_of(store: Store, model: str, version: int) -> str:
    """Digest of the variant that a registered version names.

    Raises:
        VersionMissing: there is no such version; says which there are.
    """
    versions, view = Versions(store), mlflow_view()
    try:
        return versions.digest(model, version)
    except VersionMissing:
        if view is None:
            raise
        try:
            versions.adopt(model, view.versions(model))
        except RegistryError as error:
            _log.warning("MLflow could not be asked for versions that it alone knows: %s", error)
        return versions.digest(model, version)


def _store() -> Store:
    store = Store.from_environment()
    store.ping()
    return store
