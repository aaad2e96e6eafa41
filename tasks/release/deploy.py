"""deploy: the end of a run, where what passed its gates is put into service."""

from __future__ import annotations

from model_registry.store import Store
from tasks.release.deployment import Deployment, DeploySpec, put_into_service
from tasks.running.policy import step


@step("deploy")
def deploy(
    store: str, model: str, spec: DeploySpec, *, version: int, digest: str, champion_seq: int | None = None
) -> Deployment:
    """:func:`tasks.release.deployment.put_into_service`, in the store of that URI; raises as it does."""
    opened = Store(store)
    return put_into_service(opened, model, spec, version=version, digest=digest, champion_seq=champion_seq)
