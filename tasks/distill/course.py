"""The trainings of one distillation in their order: which mix, the student, its control."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from tasks.distill.lessons import Lessons
from tasks.distill.mix_search import Mix, MixTrial, search_mix
from tasks.torch_models.fit import Fitted
from tasks.torch_models.objective import Hard, Objective


@dataclass(frozen=True)
class Trained:
    """A model, on its device and in eval mode, and what its training came to."""

    model: nn.Module
    fitted: Fitted


class Course:
    """Trains one model after the other.

    Args:
        mixes: of temperature and the teacher's share, to choose from by short trainings if there are several.
        auto_epochs: length of each short training, as a share of the epochs.
        control: whether a control will be trained too.
        progress: called with a fraction of the whole and a line of text.
    """

    def __init__(
        self,
        lessons: Lessons,
        mixes: tuple[Mix, ...],
        *,
        auto_epochs: float,
        control: bool,
        progress: Callable[[float, str], None],
    ) -> None:
        self.lessons, self.mixes, self.epochs, self.progress = lessons, mixes, lessons.training.epochs, progress
        self.short = max(1, round(auto_epochs * self.epochs))
        trials = len(mixes) * self.short if len(mixes) > 1 else 0
        self.total = trials + self.epochs * (2 if control else 1)
        self.done = 0

    def choose(self) -> tuple[Mix, list[MixTrial]]:
        """Temperature and alpha, and the short trainings they were chosen by."""

        def train(number: int, mix: Mix) -> Fitted:
            return self._teach(f"trial-{number}", self.short, mix).fitted

        return search_mix(self.mixes, train)

    def student(self, mix: Mix) -> Trained:
        """The model trained with the teacher."""
        return self._teach("student", self.epochs, mix)

    def control(self) -> Trained:
        """The same model trained without the teacher."""
        model = self.lessons.begin()
        return Trained(model, self._fit(model, Hard(self.lessons.data.workload.loss), "control", self.epochs))

    def _teach(self, name: str, epochs: int, mix: Mix) -> Trained:
        model = self.lessons.begin()
        with self.lessons.taught(model, mix) as objective:
            return Trained(model, self._fit(model, objective, name, epochs))

    def _fit(self, model: nn.Module, objective: Objective, name: str, epochs: int) -> Fitted:
        begun = self.done
        self.done += epochs

        def progress(fraction: float, text: str) -> None:
            self.progress((begun + fraction * epochs) / self.total, f"{name}: {text}")

        return self.lessons.fit(model, objective, name=name, epochs=epochs, progress=progress)
