"""The train stage in its process."""

from __future__ import annotations

from tasks.running.child import Child, Result
from tasks.torch_models.fit import fit
from tasks.torch_models.fit_checkpoint import StoreCheckpoints
from tasks.torch_models.fit_state import history_jsonl
from tasks.torch_models.model_structure import ModelStructure
from tasks.torch_models.torch_variant import build, parameter_count, save
from tasks.torch_models.training import Training
from tasks.torch_models.training_data import TrainingData
from tasks.workloads.workload import load_workload


def main(child: Child) -> Result:
    """Train the workload's model in the role of teacher, and publish it with its curves."""
    scale = child.spec["scale"]
    workload = load_workload(child.job.workload, child.data.known)
    data = TrainingData.read(child.store, child.data, workload, child.workdir / "splits")
    model = build(workload, "teacher", scale, seed=child.job.seed)

    fitted = fit(
        model,
        data,
        Training.of(child.spec, child.job),
        seed=child.job.seed,
        device=child.job.device,
        checkpoints=StoreCheckpoints(child.store, f"{child.checkpoint_prefix}teacher"),
        progress=child.progress,
    )

    variant = save(
        child.store,
        model,
        workload=workload,
        structure=ModelStructure(role="teacher", scale=scale),
        sample=data.validation,
        name="teacher",
        stage="train",
    )
    history = child.store.publish_bytes(history_jsonl(fitted.history), "teacher.history.jsonl")
    values = {"parameters": parameter_count(model), **fitted.summary()}
    return Result(variants=(variant,), values=values, files=(history,))
