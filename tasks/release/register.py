"""register: a version in MLflow for a chosen variant that has none yet, with its recorded predictions."""

from __future__ import annotations

from model_registry.lease import lease
from model_registry.measurement import Measurement
from model_registry.recording import record
from model_registry.registry import CHALLENGER, CHAMPION, Registry
from model_registry.run_page import Tracked, VariantRun, variant_note
from model_registry.store import Store
from model_registry.variant import Variant
from tasks.evidence.arrays import fetch_arrays
from tasks.evidence.split_inputs import split_inputs
from tasks.running.policy import step
from tasks.running.splits import DataRef
from tasks.running.stage import Job

_WAIT_SECONDS = 120.0


@step("register")
def register(job: Job, *, data: DataRef, variant: Variant, measurement: Measurement, tracked: Tracked) -> int:
    """The version number of the variant: the one it has, or a new one. Creating the version is the last thing done.

    Args:
        variant: the chosen one, which passed its gates.
        measurement: its measurement; rows of its predictions become what an endpoint must answer.
        tracked: the run in MLflow whose child run logged the model.

    Raises:
        RegistryUnavailable, StoreUnavailable, LeaseBusy: may pass; no half version is left.
    """
    store, registry = Store(job.store), Registry.from_environment()
    inputs = fetch_arrays(store, split_inputs(job, data)[measurement.split])
    outputs = fetch_arrays(store, measurement.predictions)["outputs"]
    inputs = {name: values[: len(outputs)] for name, values in inputs.items()}  # of large answers the first are kept
    record(store, variant, inputs, outputs, batch=measurement.predict_batch)
    # Two runs that chose the same digest must not make two versions: MLflow itself would.
    with lease(store, f"register-{job.model}", wait_seconds=_WAIT_SECONDS):
        version = registry.find_version(job.model, variant.digest)
        if version is None:
            row = VariantRun(variant=variant, measurement=measurement)
            version = registry.create_version(
                tracked.run,
                tracked.children[variant.digest],
                variant.digest,
                description=variant_note(row),
                tags={"winnow.stage": variant.stage, "winnow.variant": variant.name},
            )
        if registry.alias(job.model, CHAMPION) != version:
            registry.set_alias(job.model, CHALLENGER, version)
    return version
