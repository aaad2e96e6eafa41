"""register: versions in MLflow for proven variants that have none yet, with their recorded predictions."""

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
def register(
    job: Job,
    *,
    data: DataRef,
    variant: Variant,
    measurement: Measurement,
    tracked: Tracked,
    others: tuple[VariantRun, ...] = (),
) -> dict[str, int]:
    """Version numbers by digest: of the variant and of the others, each the one that it has or a new one.

    Creating the variant's version is the last thing done, so that no set is registered in part; what was made of it
    before that is proven all the same, and no alias points to it.

    Args:
        variant: the chosen one, which passed its gates.
        measurement: its measurement; rows of its predictions become what an endpoint must answer.
        tracked: the run in MLflow whose child runs logged the models.
        others: what passed them as well, of a front. The tag ``winnow.front`` of each version names all of them.

    Raises:
        RegistryUnavailable, StoreUnavailable, LeaseBusy: may pass; no half version is left.
    """
    store, registry = Store(job.store), Registry.from_environment()
    rows = (*others, VariantRun(variant=variant, measurement=measurement))
    inputs = fetch_arrays(store, split_inputs(job, data)[measurement.split])
    for row in rows:
        assert row.measurement is not None
        outputs = fetch_arrays(store, row.measurement.predictions)["outputs"]
        kept = {name: values[: len(outputs)] for name, values in inputs.items()}  # of large answers the first
        record(store, row.variant, kept, outputs, batch=row.measurement.predict_batch)
    # Two runs that chose the same digest must not make two versions: MLflow itself would.
    with lease(store, f"register-{job.model}", wait_seconds=_WAIT_SECONDS):
        versions = {row.variant.digest: _version(registry, job.model, row, tracked) for row in rows}
        for version in versions.values() if others else ():
            numbers = ", ".join(map(str, sorted(versions.values())))
            registry.tag_version(job.model, version, {"winnow.front": numbers})
        chosen = versions[variant.digest]
        if registry.alias(job.model, CHAMPION) != chosen:
            registry.set_alias(job.model, CHALLENGER, chosen)
    return versions


def _version(registry: Registry, model: str, row: VariantRun, tracked: Tracked) -> int:
    variant = row.variant
    version = registry.find_version(model, variant.digest)
    if version is not None:
        return version
    return registry.create_version(
        tracked.run,
        tracked.children[variant.digest],
        variant.digest,
        description=variant_note(row),
        tags={"winnow.stage": variant.stage, "winnow.variant": variant.name},
    )
