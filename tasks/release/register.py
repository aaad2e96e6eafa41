"""register: version numbers for proven variants that have none yet, with their recorded predictions."""

from __future__ import annotations

import logging

from model_registry.lease import lease
from model_registry.measurement import Measurement
from model_registry.mlflow_rest import RegistryError
from model_registry.recording import record
from model_registry.registry import ModelVersion
from model_registry.run_page import VariantRun
from model_registry.store import Store
from model_registry.variant import Variant
from model_registry.variant_set import SetMember, VariantSets
from model_registry.versions import Versions
from tasks.evidence.arrays import fetch_arrays
from tasks.evidence.split_inputs import split_inputs
from tasks.release.deployment import mlflow_view
from tasks.running.policy import step
from tasks.running.splits import DataRef
from tasks.running.stage import Job

REGISTERING_SECONDS = 120.0
"""How long one registration of a model waits for another one."""
_log = logging.getLogger("winnow.release")


@step("register")
def register(
    job: Job, *, data: DataRef, variant: Variant, measurement: Measurement, others: tuple[VariantRun, ...] = ()
) -> dict[str, int]:
    """Version numbers by digest: of the variant and of the others, each the one that it has or a new one. Together they
    are a set, which an endpoint serves under one name.

    They are kept in the store. MLflow is only asked what it counts and what it knows from before; where it does not
    answer, that is left out.

    Args:
        variant: the chosen one, which passed its gates.
        measurement: its measurement; rows of its predictions become what an endpoint must answer.
        others: what passed them as well, of a front.

    Raises:
        StoreUnavailable, LeaseBusy: may pass; what was registered before is proven all the same.
    """
    store = Store(job.store)
    inputs = fetch_arrays(store, split_inputs(job, data)[measurement.split])
    rows = (*others, VariantRun(variant=variant, measurement=measurement))
    for row in rows:
        assert row.measurement is not None
        outputs = fetch_arrays(store, row.measurement.predictions)["outputs"]
        kept = {name: values[: len(outputs)] for name, values in inputs.items()}  # of large answers the first
        record(store, row.variant, kept, outputs, batch=row.measurement.predict_batch)
    versions, shown = Versions(store), _shown(job.model)
    above = max((row.version for row in shown), default=0)
    # Two runs that chose the same digest must not make two versions.
    with lease(store, f"register-{job.model}", wait_seconds=REGISTERING_SECONDS):
        versions.adopt(job.model, shown)
        numbers = {digest: _number(versions, job, digest, above) for digest in (row.variant.digest for row in rows)}
        measured = [row.measurement for row in rows if row.measurement is not None]
        VariantSets(store).write(job.model, tuple(SetMember.of(numbers[one.digest], one) for one in measured))
        return numbers


def _number(versions: Versions, job: Job, digest: str, above: int) -> int:
    known = versions.find(job.model, digest)
    return known if known is not None else versions.add(job.model, digest, run_id=job.run_id, above=above)


def _shown(model: str) -> list[ModelVersion]:
    """MLflow's rows; none where it does not answer."""
    view = mlflow_view()
    try:
        return view.versions(model) if view else []
    except RegistryError as error:
        _log.warning("%s is registered without a look at MLflow: %s", model, error)
        return []
