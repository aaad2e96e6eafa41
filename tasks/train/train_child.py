"""The train stage in its process."""

from __future__ import annotations

from tasks.running.child import Child, Result
from tasks.running.splits import read_split
from tasks.torch_models.fit import fit, history_jsonl
from tasks.torch_models.fit_checkpoint import StoreCheckpoints
from tasks.torch_models.torch_variant import build, parameter_count, save
from tasks.workloads.workload import load_workload


def main(child: Child) -> Result:
    """Train the workload's model in the role of teacher."""
    assert child.data is not None
    settings = dict(child.spec)
    scale = settings.pop("scale")
    workload = load_workload(child.job.workload)
    train = read_split(child.store, child.data, "train")
    validation = read_split(child.store, child.data, "validation")
    model = build(workload, "teacher", scale, seed=child.job.seed)
    fitted = fit(
        model,
        workload=workload,
        train=train,
        validation=validation,
        seed=child.job.seed,
        device=child.job.device,
        checkpoints=StoreCheckpoints(child.store, f"{child.checkpoint_prefix}teacher"),
        progress=child.progress,
        **settings,
    )
    variant = save(
        child.store,
        model,
        workload=workload,
        role="teacher",
        scale=scale,
        sample=validation,
        name="teacher",
        stage="train",
    )
    history = child.store.publish_bytes(history_jsonl(fitted.history), "teacher.history.jsonl")
    return Result(
        variants=(variant,), values={"parameters": parameter_count(model), **fitted.summary()}, files=(history,)
    )
