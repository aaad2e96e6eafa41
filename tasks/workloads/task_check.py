"""What a workload learns, settled before anything is trained: targets and answers are compared, and misfits refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model_registry.answer_labels import ONE_OF_SEVERAL, SEVERAL_AT_ONCE
from tasks.running.errors import WorkloadError
from tasks.running.splits import TARGET, Columns, MetricRef
from tasks.running.task_kind import BY_SIGMOID, BY_SOFTMAX, CHOICES, TaskKind, fits_classes, kind_by_shape
from tasks.workloads.workload import Workload

_ROWS = 1024
"""Rows that a workload's own batch() is given at a time."""
_SURE = 10.0
"""A logit that leaves no doubt."""

Targets = NDArray[Any]


@dataclass(frozen=True)
class SettledTask:
    """``kind``, the ``metric`` that is used, all of it in a sentence, and what is odd though it works."""

    kind: TaskKind
    metric: MetricRef
    says: str
    warnings: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """As a stage's value."""
        metric = self.metric.model_dump(mode="json")
        return {"kind": self.kind, "metric": metric, "says": self.says, "warnings": list(self.warnings)}


def targets_of(workload: Workload, columns: Columns) -> Targets:
    """All targets [N, ...] of a split, as the workload's batch() gives them."""
    if not hasattr(workload.user, "batch"):
        return columns[TARGET]
    rows = len(columns[TARGET])
    parts = ({n: torch.from_numpy(v[i : i + _ROWS].copy()) for n, v in columns.items()} for i in range(0, rows, _ROWS))
    return np.concatenate([workload.batch(part)[1].numpy() for part in parts])


def settle_task(workload: Workload, answer: tuple[int, ...], targets: Mapping[str, Targets]) -> SettledTask:
    """What the workload learns, by its targets, the shape of its model's answer, and its own loss and metric.

    Args:
        answer: shape of the model's answer, the rows first; sizes of -1 are free.
        targets: [N, ...] by split; ``train`` is among them.

    Raises:
        WorkloadError: targets and answer do not go together, or the loss or the metric does not take them; says what
            was found and what to do.
    """
    look = _Look(workload, answer, targets)
    kind = look.asked() if workload.ref.task is not None else look.inferred()
    settled = Workload(workload.user, workload.ref.model_copy(update={"task": kind}))
    _refuse_wrong_labels(look, kind)
    look.try_loss_and_metric(settled, kind)
    metric = settled.metric_ref(targets["train"], look.made_up_answers())
    return SettledTask(kind, metric, _says(look, kind, metric), tuple(_oddities(look, kind)))


def labels_file(kind: TaskKind) -> str | None:
    """Which of a variant's files holds the names of what it answers; None where a row has no label."""
    if kind in CHOICES:
        return ONE_OF_SEVERAL
    return SEVERAL_AT_ONCE if kind == "labels" else None


class _Look:
    """Targets and answer side by side."""

    def __init__(self, workload: Workload, answer: tuple[int, ...], targets: Mapping[str, Targets]) -> None:
        self.workload, self.answer, self.targets = workload, answer, targets
        self.train = targets["train"]
        self.whole = bool(np.issubdtype(self.train.dtype, np.integer))
        self.low = min(_number(t.min()) for t in targets.values())
        self.high = max(_number(t.max()) for t in targets.values())
        self.on_or_off = all(np.isin(t, (0, 1)).all() for t in targets.values())
        self.own_loss = hasattr(workload.user, "loss")
        self.own_both = self.own_loss and hasattr(workload.user, "metric")
        self.form = kind_by_shape(answer, self.train.shape, whole=self.whole)

    # -- which task -------------------------------------------------------------------------------------------------
    def inferred(self) -> TaskKind:
        """The one task that fits, or a refusal."""
        if self.form == "regression":
            return self._logits_of_floats() or "regression"
        if self.form == "classes" and not (self.low >= 0 and self.high < self.answer[1]):
            return self._other_or_refuse(self._wrong_numbers())
        if self.form in BY_SIGMOID and not self.on_or_off:
            return "regression" if self.own_loss else self.refuse(self._neither_nor())
        if self.form == "other":
            return self._other_or_refuse(self._misfit())
        return self.form

    def asked(self) -> TaskKind:
        """The task that the spec names, if it is possible."""
        kind = self.workload.ref.task
        assert kind is not None
        single = kind_by_shape(self.answer, self.train.shape, whole=True)
        if kind == "other" and not self.own_both:
            self.refuse("task other means that only the workload knows: it needs a loss() and a metric() of its own")
        if kind == "regression" and single not in BY_SIGMOID:
            self.refuse(self._misfit())
        if kind in BY_SIGMOID and (single != kind or not self.on_or_off):
            per = "one logit and one target" if kind == "binary" else "as many logits as targets"
            self.refuse(f"task {kind} takes {per} a row, and targets of 0 and 1; {self.found()}")
        if kind in BY_SOFTMAX:
            if not self.whole:
                self.refuse(f"task {kind} takes class numbers, which are integers; {self.found()}")
            if not fits_classes(self.answer, self.train.shape) or (kind == "classes") != (self.train.ndim == 1):
                self.refuse(self._misfit())
            if kind == "classes" and not (self.low >= 0 and self.high < self.answer[1]):
                self.refuse(self._wrong_numbers())
        return kind

    def _logits_of_floats(self) -> TaskKind | None:
        """Targets of 0.0 and 1.0 are labels if the workload's own loss takes the answers as logits of them."""
        if not self.on_or_off or not self.own_loss or self.one_hot() or -1 in self.answer[1:]:
            return None
        few = torch.from_numpy(np.concatenate([self.train[:16], self._extremes()]).copy()).float()
        sure = (2 * few - 1).reshape(len(few), *self.answer[1:]) * _SURE
        try:
            right, wrong = (float(self.workload.loss(answers, few)) for answers in (sure, -sure))
        except (RuntimeError, ValueError, IndexError, TypeError):
            return None
        return kind_by_shape(self.answer, self.train.shape, whole=True) if right < 0.1 and wrong > 10 * right else None

    def one_hot(self) -> bool:
        """Whether every row of train has one 1."""
        return self.train.ndim == 2 and self.train.shape[1] > 1 and bool((self.train.sum(axis=1) == 1).all())

    # -- what is refused --------------------------------------------------------------------------------------------
    def refuse(self, text: str) -> TaskKind:
        """Raise; the return type lets it stand for an answer."""
        raise WorkloadError(f"workload {self.workload.ref.path}: {text}")

    def _other_or_refuse(self, text: str) -> TaskKind:
        """What the shapes do not say may be a matter of the workload's own loss and metric."""
        if not self.own_both:
            self.refuse(text)
        return "other"

    def found(self) -> str:
        """Targets and answer, for messages."""
        values = f"{self.low:g} to {self.high:g}" if not self.on_or_off else "only 0 and 1"
        return (
            f"the targets are {self.train.dtype}{_shape(self.train.shape)}, {values}, and the model answers "
            f"{_shape(self.answer)}"
        )

    def _wrong_numbers(self) -> str:
        classes, low, high = self.answer[1], int(self.low), int(self.high)
        found = f"classes are numbered {low} to {high}, and the model answers {classes} scores, of the classes 0 to "
        if low == 1 and high == classes:
            return f"{found}{classes - 1}: number them from 0, with target - 1 in splits()"
        if low == 0:
            return f"{found}{classes - 1}: let model() answer {high + 1} scores, or number the classes without gaps"
        return (
            f"{found}{classes - 1}: number them from 0 without gaps, as np.unique(target, return_inverse=True)[1] does"
        )

    def _neither_nor(self) -> str:
        return (
            f"{self.found()}: as many numbers as targets, which are neither 0 and 1 nor floating point. For numbers, "
            "make the targets float32 or say workload.task: regression; for classes, let model() answer a score for "
            f"each of the {int(self.high) + 1}"
        )

    def _misfit(self) -> str:
        last = self.answer[:1] + self.answer[-1:] + self.answer[1:-1]
        if self.whole and len(self.answer) > 2 and fits_classes(last, self.train.shape):
            return f"{self.found()}: the classes must be dimension 1; return answer.movedim(-1, 1) from forward()"
        if self.whole and self.train.ndim == 2 and self.train.shape[1] == 1:
            return f"{self.found()}: class numbers are [N]; give target[:, 0] in splits()"
        return (
            f"{self.found()}, which do not go together: make the model's last layer fit the targets, or write a "
            "loss() and a metric() that take them"
        )

    def try_loss_and_metric(self, workload: Workload, kind: TaskKind) -> None:
        """Both, on the rows with the lowest and the highest target; what fails there fails after the training."""
        few = self._extremes()
        outputs = self.made_up_answers(len(few))
        try:
            loss = workload.loss(torch.from_numpy(outputs), torch.from_numpy(few))
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            self.refuse(f"the loss of a {kind} model fails: {error}; {self.found()}: make the two fit, or write a loss")
        if loss.ndim != 0:
            self.refuse(f"the loss has shape {list(loss.shape)}; it must be a scalar: average it")
        workload.scores(outputs, few)

    def made_up_answers(self, rows: int = 2) -> NDArray[np.float32]:
        """Answers [rows, ...] of the model's shape; free sizes are those of the targets."""
        sizes = list(self.answer[1:])
        free = self.train.shape[1:] if len(self.train.shape) == len(self.answer) else (1, *self.train.shape[1:])
        shape = [rows, *(have if size == -1 else size for size, have in zip(sizes, free, strict=False))]
        return np.random.default_rng(0).normal(size=shape).astype(np.float32)

    def _extremes(self) -> Targets:
        """The rows of train with the lowest and the highest target, twice: a loss may want more than one row."""
        flat = self.train.reshape(len(self.train), -1)
        rows = [int(flat.min(axis=1).argmin()), int(flat.max(axis=1).argmax())]
        return np.ascontiguousarray(self.train[[*rows, *rows]])


def _refuse_wrong_labels(look: _Look, kind: TaskKind) -> None:
    """The names in labels() must be as many as the model scores."""
    labels = look.workload.labels()
    wanted = {"binary": 2, "classes": look.answer[1:2], "places": look.answer[1:2], "labels": look.answer[1:]}
    count = wanted.get(kind)
    count = int(np.prod(count)) if isinstance(count, tuple) and -1 not in count else count
    if labels is not None and isinstance(count, int) and len(labels) != count:
        look.refuse(
            f"labels() has {len(labels)} names ({', '.join(labels[:5])}), and a {kind} model that answers "
            f"{_shape(look.answer)} has {count}: name each one, in the order of the answers"
        )


def _says(look: _Look, kind: TaskKind, metric: MetricRef) -> str:
    """The task for people."""
    count = int(np.prod([size for size in look.answer[1:] if size != -1]))
    what = {
        "binary": "one logit a row, above 0 means class 1",
        "classes": f"{count} classes, a score for each",
        "labels": f"{count} labels a row, a logit for each, above 0 means on",
        "regression": f"{count} number{'s' * (count > 1)} a row",
        "places": f"a class for each place of {_shape(look.train.shape)}; answers {_shape(look.answer)}",
        "other": "what only the workload's own loss and metric understand",
    }[kind]
    loss = {"regression": "mean squared error", "classes": "cross-entropy", "places": "cross-entropy"}
    used = "the workload's own" if look.own_loss else loss.get(kind, "binary cross-entropy")
    why = "as the spec says" if look.workload.ref.task is not None else f"inferred: {look.found()}"
    return f"{kind}: {what}; loss: {used}; metric: {metric.name}, {metric.better} is better ({why})"


def _oddities(look: _Look, kind: TaskKind) -> Iterator[str]:
    """What works and may not be meant."""
    if kind in ("labels", "regression") and look.on_or_off and look.one_hot():
        yield (
            "every row of the targets has exactly one 1: these look like classes; give class numbers [N] from 0, "
            "and the model learns and answers one of them"
        )
    elif kind == "regression" and look.on_or_off:
        yield (
            "the targets are only 0.0 and 1.0 and are learned as numbers; make them integers, or say "
            "workload.task: binary (one) or labels (several), and the model answers with probabilities"
        )
    if kind in CHOICES and look.low == look.high:
        yield f"every target is {look.low:g}: there is nothing to tell apart"


def _number(value: Any) -> float:
    return float(value)


def _shape(shape: tuple[int, ...]) -> str:
    return f"[N, {', '.join('free' if size == -1 else str(size) for size in shape[1:])}]" if len(shape) > 1 else "[N]"
