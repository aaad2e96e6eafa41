"""The distill stage in its process."""

from __future__ import annotations

from typing import Any

from torch import nn

from tasks.distill.lessons import Lessons, Pupil
from tasks.distill.mix_search import Mix, MixTrial, candidates, search_mix
from tasks.evidence.paired import compare_paired
from tasks.running.child import Child, Result
from tasks.torch_models.fit import Fitted
from tasks.torch_models.objective import Hard, Objective


def main(child: Child) -> Result:
    """Train the student and its control, and say what the teacher was good for."""
    lessons, label = Lessons(child), child.extra.get("name", "")
    values = {"metric": child.data.metric.name, **lessons.metrics()}
    name = label or "student"
    if not child.spec["epochs"]:
        pupils = [lessons.publish(lessons.model(), None, name)]
        values |= {"student": pupils[0].facts, "inherited": lessons.inherited}
        return _result(pupils, values)

    course = _Course(child, lessons)
    chosen, tried = course.choose()
    values["chosen"] = {"temperature": chosen.temperature, "alpha": chosen.alpha}
    values["tried"] = [trial.as_json() for trial in tried]
    student = course.student(name, chosen)
    values |= {"student": student.facts, "inherited": lessons.inherited}
    if child.spec["hints"] is not None:
        values["hints"] = [list(pair) for pair in lessons.hints]
    if not child.spec["control"]:
        return _result([student], values)
    control = course.control(f"control-{label}" if label else "control")
    values["control"] = control.facts
    values |= _gain(student, control, child.data.metric.better)
    return _result([student, control], values)


class _Course:
    """The trainings of the stage in their order, and how far they have come."""

    def __init__(self, child: Child, lessons: Lessons) -> None:
        self.child, self.lessons, self.epochs = child, lessons, int(child.spec["epochs"])
        self.short = max(1, round(child.spec["auto_epochs"] * self.epochs))
        self.mixes = candidates(child.spec["temperature"], child.spec["alpha"], classification=lessons.classification)
        trials = len(self.mixes) * self.short if len(self.mixes) > 1 else 0
        self.total = trials + self.epochs * (2 if child.spec["control"] else 1)
        self.done = 0

    def choose(self) -> tuple[Mix, list[MixTrial]]:
        """Temperature and alpha, by short trainings if the spec leaves them open."""

        def train(number: int, mix: Mix) -> Fitted:
            return self._teach(self.lessons.model(), f"trial-{number}", self.short, mix)

        return search_mix(self.mixes, train)

    def student(self, name: str, mix: Mix) -> Pupil:
        """The model trained with the teacher, published."""
        model = self.lessons.model()
        return self.lessons.publish(model, self._teach(model, "student", self.epochs, mix), name)

    def control(self, name: str) -> Pupil:
        """The same model trained without the teacher, published."""
        model = self.lessons.model()
        return self.lessons.publish(
            model, self._fit(model, Hard(self.lessons.workload.loss), "control", self.epochs), name
        )

    def _teach(self, model: nn.Module, name: str, epochs: int, mix: Mix) -> Fitted:
        with self.lessons.taught(model, mix) as objective:
            return self._fit(model, objective, name, epochs)

    def _fit(self, model: nn.Module, objective: Objective, name: str, epochs: int) -> Fitted:
        begun = self.done
        self.done += epochs

        def progress(fraction: float, text: str) -> None:
            self.child.progress((begun + fraction * epochs) / self.total, f"{name}: {text}")

        return self.lessons.fit(model, objective, name=name, epochs=epochs, progress=progress)


def _result(pupils: list[Pupil], values: dict[str, Any]) -> Result:
    return Result(
        variants=tuple(pupil.variant for pupil in pupils),
        files=tuple(pupil.history for pupil in pupils if pupil.history is not None),
        values=values,
    )


def _gain(student: Pupil, control: Pupil, better: str) -> dict[str, Any]:
    """The student against the control on the same validation samples, turned so that more is better."""
    paired = compare_paired(
        student.scores,
        control.scores,
        better="higher" if better == "higher" else "lower",
        reference=control.variant.digest,
    )
    return {"gain": paired.difference, "gain_interval": list(paired.interval), "gain_p": paired.p}
