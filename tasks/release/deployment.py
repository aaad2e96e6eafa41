"""A registered version in service, with nothing but store and endpoint alive; ledger_protocol.py holds the steps."""

from __future__ import annotations

from pydantic import Field

from model_registry.endpoint_client import Endpoint
from model_registry.ledger import Kind, Ledger
from model_registry.mlflow_rest import RegistryError
from model_registry.registry import Registry
from model_registry.rollout_plan import RolloutPlan
from model_registry.store import Store
from model_registry.variant import Frozen
from tasks.release.ledger_protocol import Reconciled, ReleaseProtocol

VIEW_SECONDS = 5.0
"""How long MLflow, which only shows what was released, may take for an answer."""


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

    rollout: RolloutPlan | None = Field(
        default=None,
        description="how a new version takes over the traffic step by step; without it, at once, after it has answered "
        "its recorded predictions",
    )


class Deployment(Frozen):
    """The champion after a release, by the ledger."""

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
    served: bool = True
    """False if the endpoint could not be asked, or could not be brought to serve it, once the ledger had changed."""
    warnings: tuple[str, ...] = ()
    """What is not as it should be all the same, a sentence each."""


def put_into_service(
    store: Store,
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
        store: holds the ledger.
        version, digest: registered version and its variant.
        kind: ``rollback`` for going back in history.
        champion_seq: the champion's ledger entry that the version was judged against (0: none); None: whichever.

    Raises:
        EndpointUnhealthy: it could not be loaded, does not answer as recorded or was stopped on trial; the old version
            keeps serving.
        ChampionMoved, ReleasePending, LeaseBusy: another release came first.
        VersionMissing: the number is not registered for that variant.
    """
    before = Ledger(store).champion(model)
    with Endpoint.from_environment() as endpoint:
        protocol = ReleaseProtocol(store, endpoint, mlflow_view(), model)
        entry = protocol.release(
            version,
            digest,
            kind=kind,
            champion_seq=champion_seq,
            tolerance=spec.tolerance,
            load_seconds=spec.load_seconds,
            plan=spec.rollout,
        )
        return Deployment(
            model=model,
            version=entry.to_version,
            digest=entry.digest,
            seq=entry.seq,
            previous_version=entry.from_version,
            url=f"{endpoint.url}/v2/models/{model}",
            changed=before is None or before.seq != entry.seq,
            served=protocol.served,
            warnings=tuple(protocol.warnings),
        )


def reconcile(store: Store, model: str) -> Reconciled:
    """Complete or undo what a dead release of the model left, and have endpoint and MLflow say what the ledger says.

    Raises:
        EndpointUnreachable, ReleasePending, StoreUnavailable: nothing was decided.
    """
    with Endpoint.from_environment() as endpoint:
        return ReleaseProtocol(store, endpoint, mlflow_view(), model).reconcile()


def mlflow_view() -> Registry | None:
    """MLflow's registry, asked with little patience; None where the environment names none."""
    try:
        return Registry.from_environment(VIEW_SECONDS)
    except RegistryError:
        return None
