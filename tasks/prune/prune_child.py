"""The prune stage in its process."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tasks.prune.channel_cut import Cut
from tasks.prune.narrow import narrow
from tasks.running.child import Child, Result
from tasks.torch_models.fit_checkpoint import StoreCheckpoints
from tasks.torch_models.fit_rows import Rows, judge, torch_device
from tasks.torch_models.fit_state import history_jsonl
from tasks.torch_models.objective import Hard, Objective, distillation
from tasks.torch_models.pace import training_pace
from tasks.torch_models.taught_decoder import WholeDistributions, whole_distributions
from tasks.torch_models.teacher_answers import teacher_outputs, teacher_says
from tasks.torch_models.torch_variant import load, read_architecture, save
from tasks.torch_models.training import Training
from tasks.torch_models.training_data import TrainingData
from tasks.workloads.workload import load_workload


def main(child: Child) -> Result:
    """Prune the parent, fine-tune it with the teacher's help, and publish it with its plan."""
    spec, parent, name = child.spec, child.inputs["parent"], child.extra["name"]
    workload = load_workload(child.job.workload, child.data.known)
    data = TrainingData.read(child.store, child.data, workload, child.workdir / "splits")
    model = load(child.store, parent, workload=workload)

    narrowed = narrow(
        model,
        data,
        Cut.of(spec, workload.prune_hints()),
        Training.of(spec, child.job),
        objective=_objective(child, data, model),
        parent_metric=_known_metric(child, data),
        seed=child.job.seed,
        device=child.job.device,
        checkpoints=lambda step: StoreCheckpoints(child.store, f"{child.checkpoint_prefix}step-{step}"),
        progress=child.progress,
    )

    variant = save(
        child.store,
        model,
        workload=workload,
        structure=read_architecture(child.store, parent).narrowed(narrowed.plan),
        sample=data.validation,
        name=name,
        stage="prune",
    )
    values = {
        "variants": {variant.digest: {"name": variant.name, **narrowed.after.as_json()}},
        "before": narrowed.before.as_json(),
        "layers": narrowed.layers,
        "untraced": narrowed.untraced,
        "left_alone": narrowed.left_alone,
        "batchnorm_layers": narrowed.batchnorm_layers,
        "validation": narrowed.validation,
    }
    history = history_jsonl(narrowed.history)
    files = (child.store.publish_bytes(history, f"{name}.history.jsonl"),) if narrowed.history else ()
    if not spec["epochs"]:
        values |= _pace(child, data, model)
    return Result(variants=(variant,), values=values, files=files)


def _pace(child: Child, data: TrainingData, model: nn.Module) -> dict[str, Any]:
    where = torch_device(child.job.device)
    rows = Rows(data.workload, data.train, where)
    whole = _whole(child, data, model)
    return training_pace(model.to(where), rows, batch_size=child.spec["batch_size"], objective=whole)


def _known_metric(child: Child, data: TrainingData) -> float | None:
    """The parent's metric by its stored answers, if it is the teacher and the metric is wanted."""
    teacher = child.inputs["teacher"]
    if child.inputs["parent"].digest != teacher.digest or not child.spec["epochs"]:
        return None
    outputs = teacher_outputs(
        child.store,
        teacher,
        workload=data.workload,
        data=child.data,
        split="validation",
        columns=data.validation,
        device=child.job.device,
    )
    _, targets = data.workload.batch({name: torch.from_numpy(values) for name, values in data.validation.items()})
    return judge(data.workload, outputs, targets.numpy())[1]


def _whole(child: Child, data: TrainingData, model: nn.Module) -> WholeDistributions | None:
    return whole_distributions(
        child.store,
        [child.inputs["teacher"]],
        model,
        workload=data.workload,
        device=child.job.device,
        alpha=child.spec["alpha"],
    )


def _objective(child: Child, data: TrainingData, model: nn.Module) -> Objective:
    if child.spec["epochs"] == 0 or child.spec["alpha"] == 0:  # nobody need be asked
        return Hard(data.workload.loss)
    whole = _whole(child, data, model)
    if whole is not None:
        return whole
    answers = teacher_says(
        child.store,
        child.inputs["teacher"],
        workload=data.workload,
        data=child.data,
        train=data.train,
        device=child.job.device,
    )
    return distillation(
        data.workload.loss,
        answers,
        task=child.data.task,
        temperature=child.spec["temperature"],
        alpha=child.spec["alpha"],
    )
