"""deploy: put a registered version into service; tasks/release/ledger_protocol.py holds the steps."""

from __future__ import annotations

from pydantic import Field

from model_registry.endpoint_client import Endpoint
from model_registry.ledger import Kind, Ledger
from model_registry.registry import Registry
from model_registry.store import Store
from model_registry.variant import Frozen
from tasks.release.ledger_protocol import Reconciled, ReleaseProtocol
from tasks.running.policy import step


class DeploySpec(Frozen):
    """When the endpoint may take a new version into service."""

    tolerance: float = Field(
        default=1e-3,
        gt=0,
        description="largest acceptable difference to the recorded predictions, as a share of the largest recorded "
        "output",
    )
    load_seconds: float = Field(
        default=120.0, gt=0, description="how long the endpoint may take to load a version, in seconds"
    )


class Deployment(Frozen):
    """A version in service."""

    model: str
    version: int
    digest: str
    seq: int
    """Its ledger entry."""
    previous_version: int | None
    url: str
    """Where it answers: ``POST <url>/infer``."""
    changed: bool
    """False if it was the champion already."""


@step("deploy")
def deploy(
    store: str,
    model: str,
    spec: DeploySpec,
    *,
    version: int,
    digest: str,
    kind: Kind = "release",
    champion_seq: int | None = None,
) -> Deployment:
    """Make the version champion and give it the traffic, or leave everything as it was.

    Args:
        store: URI of the store with the ledger.
        version, digest: registered version and its variant.
        kind: ``rollback`` for going back in history.
        champion_seq: the champion's ledger entry that the version was judged against (0: none); None: whichever.

    Raises:
        EndpointUnhealthy: it could not be loaded or does not answer as recorded; the old version keeps serving.
        ChampionMoved, ReleasePending, LeaseBusy: another release came first.
    """
    opened = Store(store)
    before = Ledger(opened).champion(model)
    with Endpoint.from_environment() as endpoint:
        entry = ReleaseProtocol(opened, endpoint, Registry.from_environment(), model).release(
            version,
            digest,
            kind=kind,
            champion_seq=champion_seq,
            tolerance=spec.tolerance,
            load_seconds=spec.load_seconds,
        )
        return Deployment(
            model=model,
            version=entry.to_version,
            digest=entry.digest,
            seq=entry.seq,
            previous_version=entry.from_version,
            url=f"{endpoint.url}/v2/models/{model}",
            changed=before is None or before.seq != entry.seq,
        )


def reconcile(store: Store, model: str) -> Reconciled:
    """Complete or undo what a dead release of the model left; at the start of every run and by ``winnow up``.

    Raises:
        EndpointUnreachable, ReleasePending, StoreUnavailable, RegistryUnavailable: nothing was decided.
    """
    with Endpoint.from_environment() as endpoint:
        return ReleaseProtocol(store, endpoint, Registry.from_environment(), model).reconcile()
