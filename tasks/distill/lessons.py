"""What all trainings of one distillation share: data, what the teachers say, and the model they begin with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from tasks.distill.hint_kind import HintKind
from tasks.distill.hint_layers import attention_layers, matching_layers
from tasks.distill.hints import hinted
from tasks.distill.mix_search import Mix
from tasks.running.task_kind import TaskKind
from tasks.torch_models.fit import Fitted, fit
from tasks.torch_models.fit_checkpoint import Checkpoints
from tasks.torch_models.fit_rows import Rows, torch_device
from tasks.torch_models.objective import Hard, Objective, TeacherAnswers, distillation
from tasks.torch_models.taught_decoder import WholeDistributions
from tasks.torch_models.training import Training
from tasks.torch_models.training_data import TrainingData
from tasks.torch_models.views import Views
from tasks.workloads.workload import row_filling

_HINT_ROWS = 2


@dataclass(frozen=True)
class WatchedTeacher:
    """A teacher whose hidden features are part of the lesson: ``model`` on the device of the training.

    ``layers``: pairs of module names (its own, the student's), or ``auto``: matched by resolution, or the last
    attention of each. ``weight``: of the hints beside the rest of the loss. ``of``: what is compared.
    """

    model: nn.Module
    layers: Literal["auto"] | Sequence[tuple[str, str]]
    weight: float
    of: HintKind = "features"


@dataclass(frozen=True)
class Lessons:
    """The same for every training of a distillation, the control's too.

    Args:
        begin: makes the model that each training begins with; equal each time.
        training: how, but for the epochs.
        answers: what the teachers say; with a watched teacher it is asked live, and first among them. None: labels
            alone teach.
        watched: None: no hints.
        whole: what a decoder learns in place of ``answers``, with whatever alpha; None for all other models.
        views: see :func:`tasks.torch_models.fit.fit`.
        checkpoints: of the training of this name.
    """

    begin: Callable[[], nn.Module]
    data: TrainingData
    training: Training
    answers: TeacherAnswers | None
    task: TaskKind
    watched: WatchedTeacher | None
    whole: WholeDistributions | None
    views: Views | None
    seed: int
    device: str
    checkpoints: Callable[[str], Checkpoints | None]

    @contextmanager
    def taught(self, model: nn.Module, mix: Mix) -> Iterator[Objective]:
        """What the teachers want of this model: their answers, mixed with the targets, and their hidden features."""
        if self.whole is not None:
            yield replace(self.whole, alpha=mix.alpha)
            return
        if self.answers is None:
            yield Hard(self.data.workload.loss)
            return
        base = distillation(
            self.data.workload.loss,
            self.answers,
            task=self.task,
            temperature=mix.temperature,
            alpha=mix.alpha,
        )
        if self.watched is None:
            yield base
            return
        if not self.hints:
            print("the student has no attention, and learns without hints", flush=True)
            yield base
            return
        model.to(torch_device(self.device))
        with hinted(
            base,
            teacher=self.watched.model,
            student=model,
            pairs=self.hints,
            weight=self.watched.weight,
            inputs=self._two_rows,
            seed=self.seed,
            of=self.watched.of,
            filling=row_filling(self.data.workload),
        ) as objective:
            yield objective

    def fit(
        self, model: nn.Module, objective: Objective, *, name: str, epochs: int, progress: Callable[[float, str], None]
    ) -> Fitted:
        """Train the model; a killed training of this name goes on where it was.

        Without a teacher there are no mixtures of rows: nobody knows what they are.
        """
        unknown = isinstance(objective, Hard) and self.views is not None and self.views.kind == "mixed"
        return fit(
            model,
            self.data,
            replace(self.training, epochs=epochs),
            objective=objective,
            views=None if unknown else self.views,
            seed=self.seed,
            device=self.device,
            checkpoints=self.checkpoints(name),
            progress=progress,
        )

    @cached_property
    def hints(self) -> list[tuple[str, str]]:
        """Pairs of modules (the teacher's, the student's) whose features are compared; none without hints, or where
        they are of attention and the student, a bag of words beside encoders, has none.

        Raises:
            SpecError: no modules go together.
        """
        if self.watched is None:
            return []
        if self.watched.layers != "auto":
            return [(theirs, ours) for theirs, ours in self.watched.layers]
        student = self.begin().to(torch_device(self.device))
        if self.watched.of == "attention":
            return attention_layers(self.watched.model, student)
        return matching_layers(self.watched.model, student, self._two_rows)

    @cached_property
    def _two_rows(self) -> dict[str, Tensor]:
        rows = Rows(self.data.workload, self.data.train, torch_device(self.device))
        return rows(torch.arange(_HINT_ROWS), None).inputs
