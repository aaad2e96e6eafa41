"""What a user writes: one class, and what it may leave out.

The smallest workload has two methods::

    class Mine:
        def model(self, role: str, **scale) -> nn.Module: ...     # role: "teacher" or "student"
        def splits(self) -> dict[str, dict[str, np.ndarray]]: ... # train, calibration, validation, test

Everything else has a default: see :class:`Workload` for the optional methods and what they mean.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tasks.running.errors import WorkloadError
from tasks.running.source_hash import FIRST_PARTY
from tasks.running.splits import SPLITS, TARGET, Columns, MetricRef
from tasks.running.stage import WorkloadRef
from tasks.running.task_kind import BY_SIGMOID, TaskKind, kind_by_shape
from tasks.workloads.choice_questions import ChoiceRows
from tasks.workloads.sample_scores import (
    Scores,
    accuracy_scores,
    cosine_scores,
    iou_scores,
    jaccard_scores,
    label_accuracy_scores,
    pixel_accuracy_scores,
    squared_error_scores,
)

Inputs = dict[str, Tensor]

_EXAMPLE = """
    class Mine:
        def model(self, role, **scale):
            return nn.Linear(4, 2)
        def splits(self):
            return {name: {"x": ..., "target": ...} for name in ("train", "calibration", "validation", "test")}
"""


@dataclass(frozen=True)
class Metric:
    """A metric by its score for each sample; the metric's value is their mean.

    Args:
        name: as it is shown, and its key in MLflow. Names with ``accuracy``, ``f1``, ``auc``, ``precision``, ``recall``
            or ``jaccard`` in them, or the word ``iou``, are shown in percent.
        better: ``higher`` or ``lower``.
        per_sample: ``(outputs [N, ...], targets [N, ...]) -> scores [N]``, NumPy arrays; a score depends on its own
            row alone, because samples are compared in pairs.
        counts: ``(targets [N, ...]) -> [N]``, true for the rows whose scores count; None: all. Others are there to be
            found, such as the texts among which queries look; they are why a score of these may depend on other rows.
    """

    name: str
    better: Literal["higher", "lower"]
    per_sample: Callable[[NDArray[Any], NDArray[Any]], Scores]
    counts: Callable[[NDArray[Any]], NDArray[np.bool_]] | None = None


ACCURACY = Metric("accuracy", "higher", accuracy_scores)
LABEL_ACCURACY = Metric("label_accuracy", "higher", label_accuracy_scores)
JACCARD = Metric("jaccard", "higher", jaccard_scores)
PIXEL_ACCURACY = Metric("pixel_accuracy", "higher", pixel_accuracy_scores)
IOU = Metric("iou", "higher", iou_scores)
SQUARED_ERROR = Metric("mse", "lower", squared_error_scores)
COSINE = Metric("cosine", "higher", cosine_scores)
_METRICS: dict[TaskKind | None, Metric] = {
    "binary": ACCURACY,
    "classes": ACCURACY,
    "labels": LABEL_ACCURACY,
    "places": PIXEL_ACCURACY,
    "regression": SQUARED_ERROR,
}
_UNLABELLED = -100
"""What torch's cross-entropy passes over."""
_BUILTIN = (ACCURACY, LABEL_ACCURACY, PIXEL_ACCURACY, IOU, SQUARED_ERROR, COSINE, JACCARD)


class Workload:
    """A user's object with every default filled in.

    Attributes:
        user: the object itself.
        ref: where it came from.
        fills_missing: whether its preprocessing fills missing values (NaN) in.
    """

    def __init__(self, user: Any, ref: WorkloadRef) -> None:
        self.user = user
        self.ref = ref
        self.fills_missing = bool(getattr(user, "fills_missing", False))

    def model(self, role: str, **scale: Any) -> nn.Module:
        """A fresh model for the role; called with preprocessed inputs by name, answers [N, ...]."""
        model = self.user.model(role, **scale)
        if not isinstance(model, nn.Module):
            raise WorkloadError(
                f"{self.ref.path}.model({role!r}, **{scale}) returned {type(model).__name__}; it must return a "
                f"torch.nn.Module{_EXAMPLE}"
            )
        return model

    def splits(self) -> dict[str, Columns]:
        """All splits as equal-length arrays by column name.

        Raises:
            WorkloadError: a split or the target is missing, or columns differ in length.
        """
        return as_arrays(self.user.splits(), f"{self.ref.path}.splits()")

    def batch(self, columns: dict[str, Tensor]) -> tuple[Inputs, Tensor]:
        """Columns of some rows to (inputs by name, targets). Default: every column but the target is an input."""
        if hasattr(self.user, "batch"):
            inputs, targets = self.user.batch(columns)
            return inputs, targets
        return {name: values for name, values in columns.items() if name != TARGET}, columns[TARGET]

    def preprocess(self, inputs: Inputs) -> Inputs:
        """Raw inputs to what the model takes; traced into the ONNX graph. Default: unchanged."""
        return self.user.preprocess(inputs) if hasattr(self.user, "preprocess") else inputs

    def augment(self, inputs: Inputs, generator: torch.Generator) -> Inputs:
        """Random changes of a training batch, before preprocessing. Default: none."""
        return self.user.augment(inputs, generator) if self.augments else inputs

    @property
    def augments(self) -> bool:
        return hasattr(self.user, "augment")

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Scalar loss on hard targets.

        Default, by the task (see :data:`tasks.running.task_kind.TaskKind`): cross-entropy for classes and places, where
        targets that are no class count for nothing; binary cross-entropy for one logit and for several labels; else
        mean squared error.
        """
        if hasattr(self.user, "loss"):
            loss: Tensor = self.user.loss(outputs, targets)
            return loss
        kind = _task_of(self.ref, outputs, targets, whole=not targets.is_floating_point())
        if kind in BY_SIGMOID:
            given = targets.to(outputs.dtype)
            return nn.functional.binary_cross_entropy_with_logits(outputs.reshape(targets.shape), given)
        if kind == "places":
            known = (targets >= 0) & (targets < outputs.shape[1])
            return nn.functional.cross_entropy(outputs, torch.where(known, targets.long(), _UNLABELLED))
        if kind == "regression" or targets.is_floating_point():
            return nn.functional.mse_loss(outputs.reshape(targets.shape), targets.to(outputs.dtype))
        return nn.functional.cross_entropy(outputs, targets.long())

    def metric(self, targets: NDArray[Any], outputs: NDArray[Any] | None = None) -> Metric:
        """The metric. Default, by the task: accuracy for one class a sample, the share of the labels or of the places
        that are right for several, else squared error. Without ``outputs``, as the targets look."""
        if hasattr(self.user, "metric"):
            metric: Metric = self.user.metric()
            return metric
        whole = bool(np.issubdtype(targets.dtype, np.integer))
        kind = self.ref.task if outputs is None else _task_of(self.ref, outputs, targets, whole=whole)
        if kind in _METRICS:
            return _METRICS[kind]
        if not whole:
            return SQUARED_ERROR
        return ACCURACY if targets.ndim == 1 else PIXEL_ACCURACY

    def scores(self, outputs: NDArray[Any], targets: NDArray[Any]) -> Scores:
        """The metric's score of each sample that counts (see :class:`Metric`), shape [N] where all do.

        Raises:
            WorkloadError: the metric does not take them, or does not give one score per sample.
        """
        metric = self.metric(targets, outputs)
        try:
            scores = np.asarray(metric.per_sample(outputs, targets), dtype=np.float64)
        except (ValueError, IndexError, TypeError) as error:
            raise WorkloadError(
                f"metric {metric.name!r} does not take outputs {outputs.dtype}{list(outputs.shape)} and targets "
                f"{targets.dtype}{list(targets.shape)}: {error}; return one that does from metric(), such as "
                "winnow.IOU or winnow.PIXEL_ACCURACY for a class in every place, winnow.LABEL_ACCURACY for several "
                "labels, or a winnow.Metric of your own"
            ) from error
        if scores.shape != (len(targets),):
            raise WorkloadError(
                f"metric {metric.name!r}: per_sample() returned shape {list(scores.shape)} for {len(targets)} "
                f"samples; it must return one score per sample, shape [{len(targets)}]"
            )
        return scores if metric.counts is None else scores[metric.counts(targets)]

    def metric_ref(self, targets: NDArray[Any], outputs: NDArray[Any] | None = None) -> MetricRef:
        """The metric's name and direction as a value."""
        metric = self.metric(targets, outputs)
        return MetricRef(name=metric.name, better=metric.better, builtin=metric in _BUILTIN)

    def labels(self) -> tuple[str, ...] | None:
        """Class labels by index; None for what has no classes."""
        labels = self.user.labels() if hasattr(self.user, "labels") else None
        return tuple(str(label) for label in labels) if labels is not None else None

    def frame(self, split: Columns) -> Any:
        """A pandas DataFrame of the split for the data checks, or None for the default summary."""
        return self.user.frame(split) if hasattr(self.user, "frame") else None

    def prune_hints(self) -> dict[str, Any]:
        """``ignore`` (module names never pruned) and ``round_to`` (channels kept are a multiple of it)."""
        return dict(self.user.prune_hints()) if hasattr(self.user, "prune_hints") else {}

    def dynamic_dims(self) -> dict[str, dict[int, str]]:
        """Dimensions besides the batch that vary, by input name: ``{"tokens": {1: "sequence"}}``."""
        return dict(self.user.dynamic_dims()) if hasattr(self.user, "dynamic_dims") else {}


def as_arrays(splits: Mapping[str, Any], source: str) -> dict[str, Columns]:
    """What ``source`` gave for splits, as arrays; raises as :meth:`Workload.splits`."""
    wrong = [f"split {name!r} is missing" for name in SPLITS if name not in splits]
    for name, columns in splits.items():
        lengths = {column: len(values) for column, values in columns.items()}
        if TARGET not in columns:
            wrong.append(f"split {name!r} has no column {TARGET!r}; it has {sorted(columns)}")
        if len(set(lengths.values())) > 1:
            wrong.append(f"columns of split {name!r} differ in length: {lengths}")
    if wrong:
        raise WorkloadError(f"{source}: " + "; ".join(wrong))
    return {name: {c: np.asarray(v) for c, v in splits[name].items()} for name in SPLITS}


def own_partitions(workload: Workload, folder: Path) -> Iterator[Mapping[str, Any]] | None:
    """The splits in parts, as the user's object gives them; None where :meth:`Workload.splits` gives all at once.

    Args:
        folder: an empty one, for files that are wanted while parts are taken.
    """
    user = workload.user
    return user.partitions(folder) if hasattr(user, "partitions") else None


def learned_of_rows(workload: Workload) -> dict[str, Any] | None:
    """What it learned from all rows and its models need, as JSON, for :func:`load_workload`; None: nothing."""
    return workload.user.known() if hasattr(workload.user, "known") else None


def own_tokenizer(workload: Workload) -> tuple[str, int] | None:
    """``tokenizer.json`` by which texts become the one input, and how many texts a row is; None for other data."""
    user = workload.user
    return (user.tokenizer(), int(getattr(user, "texts", 1))) if hasattr(user, "tokenizer") else None


def row_filling(workload: Workload) -> dict[str, tuple[int, float]]:
    """What rows are filled up with at their end, by input: along which dimension, and with which value.

    Raises:
        WorkloadError: ``dynamic_dims()`` does not name one dimension of such an input.
    """
    values = dict(workload.user.padding()) if hasattr(workload.user, "padding") else {}
    dims = {name: [*workload.dynamic_dims().get(name, {})] for name in values}
    for name, found in dims.items():
        if len(found) != 1:
            raise WorkloadError(
                f"{workload.ref.path}.padding() names input {name!r}, of which dynamic_dims() has the dimensions "
                f"{found}; there must be one, as in {{{name!r}: {{1: 'length'}}}}"
            )
    return {name: (dims[name][0], value) for name, value in values.items()}


def settled_scale(
    workload: Workload, scale: Mapping[str, Any], teacher: nn.Module, inputs: Mapping[str, Tensor]
) -> dict[str, Any]:
    """What a student's scale comes to beside its teacher, once and for all.

    Args:
        inputs: of some rows of training, as the teacher takes them.

    Raises:
        SpecError: the workload has no such scale.
    """
    user = workload.user
    return user.settled_scale(scale, teacher, inputs) if hasattr(user, "settled_scale") else dict(scale)


def blocks_of(workload: Workload, model: nn.Module) -> Sequence[Callable[..., Tensor]] | None:
    """The parts that a model is computed by, one after the other; None where neither workload nor model names them.

    The first takes the preprocessed inputs by name, each other one what the one before it answers, a tensor [N, ...].
    """
    if model._forward_pre_hooks or model._forward_hooks:
        return None  # something was put around it that the blocks do not know of
    if hasattr(workload.user, "blocks"):
        named = workload.user.blocks(model)
    else:
        own = getattr(type(model), "blocks", None)
        named = own(model) if callable(own) else None
    return None if named is None else tuple(named)


def rows_that_count(workload: Workload, targets: NDArray[Any]) -> NDArray[np.intp]:
    """Numbers of the rows that :meth:`Workload.scores` has scores of."""
    counts = workload.metric(targets).counts
    return np.arange(len(targets)) if counts is None else np.flatnonzero(counts(targets))


def is_trained(workload: Workload) -> bool:
    """Whether the workload's ``model("teacher")`` comes with its trained weights, so that nothing is left to train."""
    return bool(getattr(workload.user, "trained", False))


def causal_assets(workload: Workload) -> tuple[str, str | None]:
    """``tokenizer.json`` of a model that continues text, and its chat template, if it has one.

    Raises:
        WorkloadError: the workload has no causal_tokenizer().
    """
    user = workload.user
    if not continues_text(workload):
        raise WorkloadError(
            f"{workload.ref.path}.model() makes a CausalDecoder, whose tokens only causal_tokenizer() explains: return "
            "tokenizer.json from it, as a text"
        )
    return user.causal_tokenizer(), user.chat_template() if hasattr(user, "chat_template") else None


def choice_rows(workload: Workload) -> ChoiceRows | None:
    """Questions with several answers that a language model is asked; None where there are none."""
    user = workload.user
    found: ChoiceRows | None = user.choice_questions() if hasattr(user, "choice_questions") else None
    return found


def continues_text(workload: Workload) -> bool:
    """Whether its model is a language model."""
    return hasattr(workload.user, "causal_tokenizer")


def _task_of(ref: WorkloadRef, outputs: Any, targets: Any, *, whole: bool) -> TaskKind:
    """What is learned, as it is settled, or by the shapes of answers and targets, arrays or tensors [N, ...]."""
    return ref.task or kind_by_shape(tuple(outputs.shape), tuple(targets.shape), whole=whole)


def load_workload(ref: WorkloadRef, known: dict[str, Any] | None = None) -> Workload:
    """Import the class, make the object, and check all of it.

    Args:
        known: what :func:`learned_of_rows` said when the data were checked: it need not look at all of them again.

    Raises:
        WorkloadError: says everything that is missing or wrong, with an example.
    """
    module_name, _, class_name = ref.path.partition(":")
    if ref.folder and ref.folder not in sys.path:
        sys.path.append(ref.folder)  # last: nothing of the user's can shadow ours
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] in FIRST_PARTY:
            raise WorkloadError(
                f"workload {ref.path} imports {error.name!r}, a module of Winnow's that has moved: import what you "
                "need from winnow, as in `from winnow import split_columns`; dir(winnow) lists what there is"
            ) from error
        if error.name is not None and not (module_name + ".").startswith(error.name + "."):
            raise WorkloadError(
                f"workload {ref.path}: importing it needs the module {error.name!r}: install it"
            ) from error
        raise WorkloadError(
            f"workload {ref.path}: there is no module {module_name!r} in {ref.folder or 'the Python path'} nor "
            "installed; put the file beside the spec or install its package"
        ) from error
    found = getattr(module, class_name, None)
    if not inspect.isclass(found):
        there = sorted(n for n, v in vars(module).items() if inspect.isclass(v) and v.__module__ == module_name)
        raise WorkloadError(f"workload {ref.path}: module {module_name!r} has no class {class_name!r}; it has {there}")
    wrong = [
        f"method {name}{signature} is missing"
        for name, signature in (("model", "(role, **scale)"), ("splits", "()"))
        if not callable(getattr(found, name, None))
    ]
    wrong += [
        f"{name!r} must be a method"
        for name in ("batch", "preprocess", "augment", "loss", "metric", "labels", "frame", "prune_hints", "padding")
        if hasattr(found, name) and not callable(getattr(found, name))
    ]
    if wrong:
        raise WorkloadError(f"workload {ref.path}: " + "; ".join(wrong) + f". The smallest one is:{_EXAMPLE}")
    try:
        user = found(**ref.arguments)
    except TypeError as error:
        raise WorkloadError(
            f"workload {ref.path}: its arguments {ref.arguments} do not fit "
            f"{class_name}{inspect.signature(found)}: {error}"
        ) from error
    workload = Workload(user, ref)
    if known is not None:
        workload.user.recall(known)
    return workload
