"""What all trainings of the stage share: data, teachers, the model they begin with, and how a pupil is published."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from model_registry.manifest import FileEntry
from model_registry.variant import Variant
from tasks.distill.hint_layers import matching_layers
from tasks.distill.hints import hinted
from tasks.distill.inheritance import inherit
from tasks.distill.mix_search import Mix
from tasks.running.child import Child
from tasks.torch_models.fit import Fitted, fit
from tasks.torch_models.fit_checkpoint import StoreCheckpoints
from tasks.torch_models.fit_rows import Outputs, Rows, answers, judge, predict, torch_device
from tasks.torch_models.fit_state import history_jsonl
from tasks.torch_models.objective import LiveAnswers, Objective, TeacherAnswers, distillation, mean_answers
from tasks.torch_models.teacher_answers import teacher_outputs, teacher_says
from tasks.torch_models.torch_variant import build, load, parameter_count, read_architecture, save
from tasks.torch_models.training import Training
from tasks.torch_models.training_data import TrainingData
from tasks.torch_models.views import wanted_views
from tasks.workloads.workload import load_workload

_HINT_ROWS = 2


@dataclass(frozen=True)
class Pupil:
    """A trained student: its variant, curves, facts, and its score on each validation sample [n]."""

    variant: Variant
    history: FileEntry | None
    facts: dict[str, Any]
    scores: NDArray[np.float64]


class Lessons:
    """The stage's request, opened."""

    def __init__(self, child: Child) -> None:
        self.child, self.spec = child, child.spec
        self.store, self.device = child.store, child.job.device
        self.workload = load_workload(child.job.workload)
        self.data = TrainingData.read(self.store, child.data, self.workload)
        self.parent = child.inputs.get("parent")
        self.teachers = [variant for role, variant in child.inputs.items() if role != "parent"]
        self.classification = child.data.task == "classification"
        self.views = wanted_views(self.workload, self.spec["views"], child.job.seed)
        self.hints: list[tuple[str, str]] = []
        """Pairs of modules, once a model was taught with hints."""
        self.inherited: float | None = None
        """Share of the fresh model's parameters that are the teacher's, once one was made."""

    def model(self) -> nn.Module:
        """The parent, or a fresh student with the seed's initial weights, or the teacher's where they fit."""
        if self.parent is not None:
            return load(self.store, self.parent, workload=self.workload)
        model = build(self.workload, "student", self.spec["scale"], seed=self.child.job.seed)
        if self.spec["inherit"]:
            self.inherited = inherit(model, load(self.store, self.teachers[0], workload=self.workload))
        return model

    @contextmanager
    def taught(self, model: nn.Module, mix: Mix) -> Iterator[Objective]:
        """What the teachers want of this model: their answers, mixed with the targets, and their hidden features."""
        hints = self.spec["hints"]
        base = distillation(
            self.workload.loss,
            self._said,
            classification=self.classification,
            temperature=mix.temperature,
            alpha=mix.alpha,
        )
        if hints is None:
            yield base
            return
        teacher, where = self._watched, torch_device(self.device)
        inputs = Rows(self.workload, self.data.train, where)(torch.arange(_HINT_ROWS), None).inputs
        model.to(where)
        if hints["layers"] == "auto":
            self.hints = matching_layers(teacher, model, inputs)
        else:
            self.hints = [(theirs, ours) for theirs, ours in hints["layers"]]
        with hinted(
            base,
            teacher=teacher,
            student=model,
            pairs=self.hints,
            weight=hints["weight"],
            inputs=inputs,
            seed=self.child.job.seed,
        ) as objective:
            yield objective

    def fit(
        self, model: nn.Module, objective: Objective, *, name: str, epochs: int, progress: Callable[[float, str], None]
    ) -> Fitted:
        """Train the model; a killed training of this name goes on where it was."""
        return fit(
            model,
            self.data,
            replace(Training.of(self.spec), epochs=epochs),
            objective=objective,
            views=self.views,
            seed=self.child.job.seed,
            device=self.device,
            checkpoints=StoreCheckpoints(self.store, f"{self.child.checkpoint_prefix}{name}"),
            progress=progress,
        )

    def publish(self, model: nn.Module, fitted: Fitted | None, name: str) -> Pupil:
        """Judge the model on validation and save it, with its curves if it was trained."""
        outputs, targets = answers(model, Rows(self.workload, self.data.validation, torch_device(self.device)))
        if fitted is None:
            loss, metric, _ = judge(self.workload, outputs, targets)
            facts = {"epochs": 0, "best_epoch": 0, "val_metric": metric, "val_loss": loss, "stopped_early": False}
        else:
            facts = fitted.summary()
        role, scale, pruning = "student", self.spec["scale"], None
        if self.parent is not None:
            architecture = read_architecture(self.store, self.parent)
            role, scale, pruning = architecture.role, architecture.scale, architecture.pruning
        variant = save(
            self.store,
            model,
            workload=self.workload,
            role=role,
            scale=scale,
            sample=self.data.validation,
            name=name,
            stage="distill",
            pruning=pruning,
        )
        history = None
        if fitted is not None:
            history = self.store.publish_bytes(history_jsonl(fitted.history), f"{name}.history.jsonl")
        facts = {"parameters": parameter_count(model), **facts}
        return Pupil(variant, history, facts, self._scores(outputs, targets))

    def metrics(self) -> dict[str, Any]:
        """On validation: the ``teacher`` (the mean of all), each of the ``teachers`` if several, and the ``parent``."""
        targets = self.workload.batch(
            {name: torch.from_numpy(values) for name, values in self.data.validation.items()}
        )[1]

        def metric(outputs: Outputs) -> dict[str, float]:
            return {"val_metric": float(self._scores(outputs, targets.numpy()).mean())}

        said = [
            teacher_outputs(
                self.store,
                teacher,
                workload=self.workload,
                data=self.child.data,
                split="validation",
                columns=self.data.validation,
                device=self.device,
            )
            for teacher in self.teachers
        ]
        found: dict[str, Any] = {"teacher": metric(np.mean(said, axis=0))}
        if len(said) > 1:
            found["teachers"] = [metric(outputs) for outputs in said]
        if self.parent is not None:
            outputs = predict(self.model(), workload=self.workload, columns=self.data.validation, device=self.device)
            found["parent"] = metric(outputs)
        return found

    def _scores(self, outputs: Outputs, targets: Outputs) -> NDArray[np.float64]:
        return np.asarray(self.workload.metric(targets).per_sample(outputs, targets), dtype=np.float64)

    @cached_property
    def _watched(self) -> nn.Module:
        """The first teacher, in memory: its features are part of the lesson."""
        return load(self.store, self.teachers[0], workload=self.workload).to(torch_device(self.device))

    @cached_property
    def _said(self) -> TeacherAnswers:
        """What all teachers say, the same for every training; with hints the first is asked live."""
        live: list[TeacherAnswers] = [LiveAnswers(self._watched)] if self.spec["hints"] is not None else []
        stored = [
            teacher_says(
                self.store,
                teacher,
                workload=self.workload,
                data=self.child.data,
                train=self.data.train,
                device=self.device,
                views=self.views,
            )
            for teacher in self.teachers[len(live) :]
        ]
        return mean_answers([*live, *stored])
