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
from tasks.distill.course import Course
from tasks.distill.inheritance import inherit
from tasks.distill.lessons import Lessons, WatchedTeacher
from tasks.distill.mix_search import candidates
from tasks.evidence.paired import compare_paired
from tasks.running.child import Child, Result
from tasks.running.splits import TARGET
from tasks.running.task_kind import BY_SIGMOID, BY_SOFTMAX
from tasks.torch_models.fit import Fitted
from tasks.torch_models.fit_checkpoint import StoreCheckpoints
from tasks.torch_models.fit_rows import Outputs, Rows, answers, predict, torch_device
from tasks.torch_models.fit_state import history_jsonl
from tasks.torch_models.model_structure import ModelStructure
from tasks.torch_models.objective import LiveAnswers, TeacherAnswers, mean_answers
from tasks.torch_models.pace import training_pace
from tasks.torch_models.taught_decoder import WholeDistributions, whole_distributions
from tasks.torch_models.teacher_answers import teacher_outputs, teacher_says
from tasks.torch_models.torch_variant import build, load, parameter_count, read_architecture, save
from tasks.torch_models.training import Training
from tasks.torch_models.training_data import TrainingData
from tasks.torch_models.views import view_kind, wanted_views
from tasks.workloads.workload import Workload, load_workload, settled_scale

_SETTLING_ROWS = 16
"""On which a student's scale is decided beside its teacher."""


def main(child: Child) -> Result:
    """Train the student and its control, publish them, and say what the teacher was good for."""
    spec, label = child.spec, child.extra.get("name", "")
    workload = load_workload(child.job.workload, child.data.known)
    data = TrainingData.read(child.store, child.data, workload, child.workdir / "splits")
    child.spec["scale"] = _settled_scale(child, data)
    model, inherited = _begin(child, workload)
    values: dict[str, Any] = {"metric": child.data.metric.name, "inherited": inherited, "scale": child.spec["scale"]}
    if not spec["epochs"]:  # only to be costed: what it answers says nothing yet
        where = torch_device(child.job.device)
        rows = Rows(workload, data.train, where)
        whole = _whole(child, workload, model)
        values |= training_pace(model.to(where), rows, batch_size=spec["batch_size"], objective=whole)
        facts = {"parameters": parameter_count(model), "epochs": 0}
        return _result([_Pupil(_save(child, data, model, label or "student"), None, facts, np.empty(0))], values)

    values |= _metrics(child, data, model)
    lessons = _lessons(child, data, _whole(child, workload, model))
    mixes = candidates(spec["temperature"], spec["alpha"], softened=child.data.task in (*BY_SIGMOID, *BY_SOFTMAX))
    course = Course(lessons, mixes, auto_epochs=spec["auto_epochs"], control=spec["control"], progress=child.progress)
    mix, tried = course.choose()
    pupil = course.student(mix)
    untaught = course.control() if spec["control"] else None

    pupils = [_publish(child, data, pupil.model, pupil.fitted, label or "student")]
    if untaught is not None:
        name = f"control-{label}" if label else "control"
        pupils.append(_publish(child, data, untaught.model, untaught.fitted, name))
    values["epoch_seconds"] = pupil.fitted.epoch_seconds
    values["views_of"] = view_kind(data.workload, data.train, child.data.task)
    values["chosen"] = {"temperature": mix.temperature, "alpha": mix.alpha}
    values["tried"] = [trial.as_json() for trial in tried]
    if spec["hints"] is not None:
        values["hints"] = [list(pair) for pair in lessons.hints]
    return _result(pupils, values | _gain(pupils, child.data.metric.better))


def _settled_scale(child: Child, data: TrainingData) -> dict[str, Any]:
    """The student's scale, with what is to be decided beside its teacher."""
    scale: dict[str, Any] = child.spec["scale"]
    teacher = _teachers(child)[0]
    settles = scale and hasattr(data.workload.user, "settled_scale")
    if not settles or teacher.format != "torch" or "parent" in child.inputs:
        return scale
    model = load(child.store, teacher, workload=data.workload)
    last = len(data.train[TARGET]) - 1
    some = torch.tensor(sorted({n * last // _SETTLING_ROWS for n in range(_SETTLING_ROWS)}))  # of many texts
    rows = Rows(data.workload, data.train, torch_device("cpu"))(some, None)
    return settled_scale(data.workload, scale, model, rows.inputs)


def _begin(child: Child, workload: Workload) -> tuple[nn.Module, float | None]:
    """The parent, or a fresh student with the seed's initial weights, or the teacher's where they fit: which share."""
    parent = child.inputs.get("parent")
    if parent is not None:
        return load(child.store, parent, workload=workload), None
    model = build(workload, "student", child.spec["scale"], seed=child.job.seed)
    if not child.spec["inherit"]:
        return model, None
    return model, inherit(model, load(child.store, _teachers(child)[0], workload=workload))


def _teachers(child: Child) -> list[Variant]:
    return [variant for role, variant in child.inputs.items() if role != "parent"]


def _asked(child: Child) -> list[Variant]:
    """The teachers, if anybody listens: labels alone need none."""
    return _teachers(child) if child.spec["alpha"] != 0 or child.spec["hints"] is not None else []


def _whole(child: Child, workload: Workload, student: nn.Module) -> WholeDistributions | None:
    """What a decoder learns of its teacher; None where there are hints, which come beside answers."""
    if child.spec["hints"] is not None:
        return None
    alpha = 0.5 if child.spec["alpha"] == "auto" else child.spec["alpha"]
    return whole_distributions(
        child.store, _asked(child), student, workload=workload, device=child.job.device, alpha=alpha
    )


def _lessons(child: Child, data: TrainingData, whole: WholeDistributions | None) -> Lessons:
    """What the trainings share, with the teachers' answers from the store."""
    hints, views = (
        child.spec["hints"],
        wanted_views(data.workload, child.spec["views"], child.job.seed, data.train, child.data.task),
    )
    teachers, live = [] if whole is not None else _asked(child), list[TeacherAnswers]()
    watched = None
    if hints is not None:  # the first teacher in memory: its features are part of the lesson
        teacher = load(child.store, teachers.pop(0), workload=data.workload).to(torch_device(child.job.device))
        watched = WatchedTeacher(teacher, hints["layers"], hints["weight"], hints["of"])
        live.append(LiveAnswers(teacher))
    stored = [
        teacher_says(
            child.store,
            teacher,
            workload=data.workload,
            data=child.data,
            train=data.train,
            device=child.job.device,
            views=views,
        )
        for teacher in teachers
    ]
    return Lessons(
        begin=lambda: _begin(child, data.workload)[0],
        data=data,
        training=Training.of(child.spec, child.job),
        answers=mean_answers([*live, *stored]) if live or stored else None,
        task=child.data.task,
        watched=watched,
        whole=whole,
        views=views,
        seed=child.job.seed,
        device=child.job.device,
        checkpoints=lambda name: StoreCheckpoints(child.store, f"{child.checkpoint_prefix}{name}"),
    )


def _metrics(child: Child, data: TrainingData, model: nn.Module) -> dict[str, Any]:
    """On validation: the ``parent``, or of a fresh student the ``teacher`` (the mean of all) and each if several."""
    workload, device = data.workload, child.job.device
    _, targets = workload.batch({name: torch.from_numpy(values) for name, values in data.validation.items()})

    def metric(outputs: Outputs) -> dict[str, float]:
        return {"val_metric": float(workload.scores(outputs, targets.numpy()).mean())}

    said = [
        teacher_outputs(
            child.store,
            teacher,
            workload=workload,
            data=child.data,
            split="validation",
            columns=data.validation,
            device=device,
        )
        for teacher in (() if "parent" in child.inputs else _asked(child))
    ]
    found: dict[str, Any] = {"teacher": metric(np.mean(said, axis=0))} if said else {}
    if len(said) > 1:
        found["teachers"] = [metric(outputs) for outputs in said]
    if "parent" in child.inputs:
        found["parent"] = metric(predict(model, workload=workload, columns=data.validation, device=device))
    return found


@dataclass(frozen=True)
class _Pupil:
    """A published model: its variant, curves, facts, and its score on each validation sample [n]."""

    variant: Variant
    history: FileEntry | None
    facts: dict[str, Any]
    scores: NDArray[np.float64]


def _publish(child: Child, data: TrainingData, model: nn.Module, fitted: Fitted, name: str) -> _Pupil:
    """Judge the trained model on validation and save it, with its curves."""
    outputs, targets = answers(model, Rows(data.workload, data.validation, torch_device(child.job.device)))
    history = child.store.publish_bytes(history_jsonl(fitted.history), f"{name}.history.jsonl")
    facts = {"parameters": parameter_count(model), **fitted.summary(), **_on_train(child, data, model)}
    return _Pupil(_save(child, data, model, name), history, facts, data.workload.scores(outputs, targets))


def _on_train(child: Child, data: TrainingData, model: nn.Module) -> dict[str, float]:
    """Its ``train_metric`` on as many rows of the training split, evenly spread: what it has learned by heart shows
    beside validation. Absent where a score depends on other rows, and of language models, whose answers are long."""
    rows, most = len(data.train[TARGET]), len(data.validation[TARGET])
    if child.data.language is not None or data.workload.metric(data.validation[TARGET][:1]).counts is not None:
        return {}
    some = np.linspace(0, rows - 1, min(rows, most)).astype(np.intp)
    columns = {name: values[some] for name, values in data.train.items()}
    outputs, targets = answers(model, Rows(data.workload, columns, torch_device(child.job.device)))
    return {"train_metric": float(data.workload.scores(outputs, targets).mean())}


def _save(child: Child, data: TrainingData, model: nn.Module, name: str) -> Variant:
    structure = ModelStructure(role="student", scale=child.spec["scale"])
    if "parent" in child.inputs:
        structure = read_architecture(child.store, child.inputs["parent"])
    return save(
        child.store,
        model,
        workload=data.workload,
        structure=structure,
        sample=data.validation,
        name=name,
        stage="distill",
    )


def _gain(pupils: list[_Pupil], better: str) -> dict[str, Any]:
    """The student against its control on the same validation samples, turned so that more is better."""
    if len(pupils) < 2:
        return {}
    student, control = pupils
    paired = compare_paired(
        student.scores,
        control.scores,
        better="higher" if better == "higher" else "lower",
        reference=control.variant.digest,
    )
    return {"gain": paired.difference, "gain_interval": list(paired.interval), "gain_p": paired.p}


def _result(pupils: list[_Pupil], values: dict[str, Any]) -> Result:
    """``student`` and ``control`` in this order."""
    return Result(
        variants=tuple(pupil.variant for pupil in pupils),
        files=tuple(pupil.history for pupil in pupils if pupil.history is not None),
        values=values | {role: pupil.facts for role, pupil in zip(("student", "control"), pupils, strict=False)},
    )
