"""The distill stage in its process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from model_registry.manifest import FileEntry
from model_registry.variant import Variant
from tasks.child import Child, Result
from tasks.evidence.paired import compare
from tasks.fit import fit, history_jsonl
from tasks.fit_checkpoint import StoreCheckpoints
from tasks.fit_rows import Rows, answers, predict, torch_device
from tasks.objective import Hard, LiveAnswers, Objective, StoredAnswers, TeacherAnswers, distillation
from tasks.splits import Columns, read_split
from tasks.torch_variant import build, load, parameter_count, save
from tasks.workload import Workload, load_workload


@dataclass(frozen=True)
class Pupil:
    """A trained student: its variant, curves, facts, and its score on each validation sample [n]."""

    variant: Variant
    history: FileEntry
    facts: dict[str, Any]
    scores: NDArray[np.float64]


def main(child: Child) -> Result:
    """Train the student and its control, and say what the teacher was good for."""
    assert child.data is not None
    settings = dict(child.spec)
    temperature, alpha = settings.pop("temperature"), settings.pop("alpha")
    workload = load_workload(child.job.workload)
    train = read_split(child.store, child.data, "train")
    validation = read_split(child.store, child.data, "validation")
    teacher = load(child.store, child.inputs["teacher"], workload=workload)
    taught = distillation(
        workload.loss,
        _ask(teacher, workload, train, child.job.device),
        classification=child.data.task == "classification",
        temperature=temperature,
        alpha=alpha,
    )
    student = _teach(child, "student", 0.0, taught, workload, train, validation, settings)
    control = _teach(child, "control", 0.5, Hard(workload.loss), workload, train, validation, settings)
    return Result(
        variants=(student.variant, control.variant),
        files=(student.history, control.history),
        values={
            "metric": child.data.metric.name,
            "teacher": {"val_metric": float(_scores(teacher, workload, validation, child.job.device).mean())},
            "student": student.facts,
            "control": control.facts,
            **_gain(student, control, child.data.metric.better),
        },
    )


def _ask(teacher: nn.Module, workload: Workload, train: Columns, device: str) -> TeacherAnswers:
    """The teacher's answers to the training split, once for all epochs, unless augmentation changes the questions."""
    if workload.augments:
        return LiveAnswers(teacher.to(torch_device(device)))
    outputs = torch.from_numpy(predict(teacher, workload=workload, columns=train, device=device))
    return StoredAnswers(outputs.to(torch_device(device)))


def _teach(
    child: Child,
    name: str,
    begun: float,
    objective: Objective,
    workload: Workload,
    train: Columns,
    validation: Columns,
    settings: dict[str, Any],
) -> Pupil:
    """Train one student from the seed's initial weights and save it; the stage's progress goes on from ``begun``."""
    settings = dict(settings)
    scale = settings.pop("scale")
    model = build(workload, "student", scale, seed=child.job.seed)
    fitted = fit(
        model,
        workload=workload,
        train=train,
        validation=validation,
        objective=objective,
        seed=child.job.seed,
        device=child.job.device,
        checkpoints=StoreCheckpoints(child.store, f"{child.checkpoint_prefix}{name}"),
        progress=lambda fraction, text: child.progress(begun + fraction / 2, f"{name}: {text}"),
        **settings,
    )
    scores = _scores(model, workload, validation, child.job.device)
    variant = save(
        child.store,
        model,
        workload=workload,
        role="student",
        scale=scale,
        sample=validation,
        name=name,
        stage="distill",
    )
    history = child.store.publish_bytes(history_jsonl(fitted.history), f"{name}.history.jsonl")
    return Pupil(variant, history, {"parameters": parameter_count(model), **fitted.summary()}, scores)


def _scores(model: nn.Module, workload: Workload, columns: Columns, device: str) -> NDArray[np.float64]:
    outputs, targets = answers(model, Rows(workload, columns, torch_device(device)))
    return np.asarray(workload.metric(targets).per_sample(outputs, targets), dtype=np.float64)


def _gain(student: Pupil, control: Pupil, better: str) -> dict[str, Any]:
    """The student against the control on the same validation samples, turned so that more is better."""
    paired = compare(
        student.scores,
        control.scores,
        better="higher" if better == "higher" else "lower",
        reference=control.variant.digest,
    )
    return {"gain": paired.difference, "gain_interval": list(paired.interval), "gain_p": paired.p}
