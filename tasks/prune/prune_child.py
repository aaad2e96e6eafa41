"""The prune stage in its process."""

from __future__ import annotations

import torch

from tasks.prune.narrow import narrow
from tasks.running.child import Child, Result
from tasks.running.splits import Columns, read_split
from tasks.torch_models.fit import history_jsonl
from tasks.torch_models.fit_checkpoint import StoreCheckpoints
from tasks.torch_models.fit_rows import judge
from tasks.torch_models.objective import Hard, Objective, distillation
from tasks.torch_models.teacher_answers import teacher_outputs, teacher_says
from tasks.torch_models.torch_variant import load, read_architecture, save
from tasks.workloads.workload import Workload, load_workload


def main(child: Child) -> Result:
    """Prune the parent, fine-tune it with the teacher's help, and publish it with its plan."""
    assert child.data is not None
    spec, parent, name = child.spec, child.inputs["parent"], child.extra["name"]
    workload = load_workload(child.job.workload)
    train, validation = (read_split(child.store, child.data, name) for name in ("train", "validation"))
    model = load(child.store, parent, workload=workload)
    hints = workload.prune_hints()
    narrowed = narrow(
        model,
        workload=workload,
        train=train,
        validation=validation,
        objective=_objective(child, workload, train),
        parent_metric=_known_metric(child, workload, validation),
        ratio=spec["ratio"],
        ratios=spec["ratios"],
        importance=spec["importance"],
        scope=spec["scope"],
        steps=spec["steps"],
        round_to=spec["round_to"] or hints.get("round_to", 1),
        ignore=(*hints.get("ignore", ()), *spec["ignore"]),
        epochs=spec["epochs"],
        batch_size=spec["batch_size"],
        learning_rate=spec["learning_rate"],
        weight_decay=spec["weight_decay"],
        patience=spec["patience"],
        batchnorm_batches=spec["batchnorm_batches"],
        gradient_batches=spec["gradient_batches"],
        seed=child.job.seed,
        device=child.job.device,
        checkpoints=lambda step: StoreCheckpoints(child.store, f"{child.checkpoint_prefix}step-{step}"),
        progress=child.progress,
    )
    architecture = read_architecture(child.store, parent)
    variant = save(
        child.store,
        model,
        workload=workload,
        role=architecture.role,
        scale=architecture.scale,
        sample=validation,
        name=name,
        stage="prune",
        pruning=[*(architecture.pruning or []), *narrowed.plan] or None,
    )
    values = {
        "variants": {variant.digest: {"name": variant.name, **narrowed.after.as_json()}},
        "before": narrowed.before.as_json(),
        "layers": narrowed.layers,
        "untraced": narrowed.untraced,
        "batchnorm_layers": narrowed.batchnorm_layers,
        "validation": narrowed.validation,
    }
    history = history_jsonl(narrowed.history)
    files = (child.store.publish_bytes(history, f"{name}.history.jsonl"),) if narrowed.history else ()
    return Result(variants=(variant,), values=values, files=files)


def _known_metric(child: Child, workload: Workload, validation: Columns) -> float | None:
    """The parent's metric by its stored answers, if it is the teacher: many structures are made of one."""
    teacher = child.inputs["teacher"]
    if child.inputs["parent"].digest != teacher.digest:
        return None
    assert child.data is not None
    outputs = teacher_outputs(
        child.store,
        teacher,
        workload=workload,
        data=child.data,
        split="validation",
        columns=validation,
        device=child.job.device,
    )
    _, targets = workload.batch({name: torch.from_numpy(values) for name, values in validation.items()})
    return judge(workload, outputs, targets.numpy())[1]


def _objective(child: Child, workload: Workload, train: Columns) -> Objective:
    assert child.data is not None
    if child.spec["epochs"] == 0:  # nothing is learned, so nobody need be asked
        return Hard(workload.loss)
    answers = teacher_says(
        child.store, child.inputs["teacher"], workload=workload, data=child.data, train=train, device=child.job.device
    )
    return distillation(
        workload.loss,
        answers,
        classification=child.data.task == "classification",
        temperature=child.spec["temperature"],
        alpha=child.spec["alpha"],
    )
