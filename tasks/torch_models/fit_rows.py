"""Rows of a split on their way through a model: fetched as batches, answered, judged."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tasks.running.errors import RankLost, SpecError, WorkloadError
from tasks.running.ranks import Ranks, transport_failed
from tasks.running.splits import Columns
from tasks.torch_models.answer_text import describe_answer
from tasks.torch_models.fit_layout import channels_last
from tasks.torch_models.objective import TrainingBatch
from tasks.torch_models.row_lengths import RowLengths
from tasks.torch_models.views import View
from tasks.workloads.workload import Inputs, Workload

Outputs = NDArray[Any]

_EVAL_ROWS = {"cpu": 64, "other": 512}
"""Rows answered at a time. On a CPU feature maps of 512 images leave the caches, and their memory is taken from the
system again each time: a VGG at 32x32 answers 130 images per second with 512 rows and 280 with 64."""
_RESIDENT_BYTES = 1 << 30
"""Data up to this size moves to the accelerator once; more goes batch by batch."""


def evaluate(
    model: nn.Module, *, workload: Workload, columns: Columns, device: str = "auto"
) -> tuple[float, float, Literal["higher", "lower"]]:
    """Mean loss and mean metric of the model (in eval mode, float32) on a split, and which way is better."""
    return judge(workload, *answers(model, Rows(workload, columns, torch_device(device))))


def predict(model: nn.Module, *, workload: Workload, columns: Columns, device: str = "auto") -> Outputs:
    """The model's outputs [N, ...] on every row of a split, in order; float32."""
    return answers(model, Rows(workload, columns, torch_device(device)))[0]


def answers(model: nn.Module, rows: Rows) -> tuple[Outputs, Outputs]:
    """The model's outputs [N, ...] on all rows, in order, and the targets as the workload gives them.

    Leaves the model in eval mode on the device of the rows. Processes that train together share the rows out in the
    same blocks, so that the bits do not depend on their number.
    """
    model.to(rows.where).eval()
    outputs, targets = [], []
    blocks, ranks = _blocks(rows), Ranks.current()
    if len(blocks) < ranks.count:
        ranks = Ranks()  # too few to share: each answers them all
    with torch.no_grad(), channels_last(model, rows(torch.arange(min(2, rows.count)), None).inputs):
        mine = ranks.share(len(blocks))
        for number in mine:
            batch = rows(blocks[number], None, cut=True)
            outputs.append(call_model(model, batch.inputs).float().cpu())
            targets.append(batch.targets.cpu())
        if len(mine) < -(-len(blocks) // ranks.count):
            # A model whose weights are split gathers them for each block: none may answer fewer than another.
            call_model(model, rows(blocks[mine[0]], None, cut=True).inputs)
    counts = [
        sum(len(blocks[number]) for number in Ranks(rank, ranks.count).share(len(blocks)))
        for rank in range(ranks.count)
    ]
    found, wanted = ranks.collect(torch.cat(outputs), counts), ranks.collect(torch.cat(targets), counts)
    if rows.lengths:
        back = torch.argsort(torch.cat(blocks))
        found, wanted = found[back], wanted[back]
    return found.numpy(), wanted.numpy()


def _blocks(rows: Rows) -> list[Tensor]:
    """All rows in blocks. Those of rows by their length lie anywhere: who shares them out then has equal work."""
    blocks = torch.split(rows.lengths.order(rows.count), _EVAL_ROWS.get(rows.where.type, _EVAL_ROWS["other"]))
    if not rows.lengths:
        return [*blocks]
    return [blocks[number] for number in torch.randperm(len(blocks), generator=torch.Generator().manual_seed(0))]


def judge(workload: Workload, outputs: Outputs, targets: Outputs) -> tuple[float, float, Literal["higher", "lower"]]:
    """Mean loss and mean metric of outputs [N, ...] against targets [N, ...], and which way is better."""
    loss = float(workload.loss(torch.from_numpy(outputs), torch.from_numpy(targets)))
    return loss, float(workload.scores(outputs, targets).mean()), workload.metric(targets, outputs).better


def torch_device(name: str) -> torch.device:
    """``auto`` (the accelerator if there is one), ``cpu``, ``cuda``, ``cuda:1``, ``tpu``.

    Raises:
        SpecError: it is not there.
    """
    if name != "cpu":
        # cuBLAS reads it when it starts, and gives repeatable sums only with it.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if name.startswith("tpu"):
        _register_tpu()
    try:
        found = torch.accelerator.current_accelerator(check_available=True) if name == "auto" else torch.device(name)
        device = found or torch.device("cpu")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SpecError(f"device {name!r} is not there ({reason}); use auto, cpu or a cuda device") from error
    return device


def _register_tpu() -> None:
    """Have torch know the device ``tpu``, which an extension brings (github.com/google-pytorch/torch_tpu)."""
    try:
        importlib.import_module("torch_tpu")
    except ImportError as error:
        raise SpecError(
            f"device 'tpu' is not there ({error}); on a TPU VM pip install torch-tpu, or use auto or cpu"
        ) from error


class Rows:
    """Rows of a split as batches on the device ``where``: the workload's batch, augmentation and preprocessing.

    Augmentation runs on the CPU: its generator is one of the CPU, so the same seed means the same on every device.
    """

    def __init__(self, workload: Workload, columns: Columns, where: torch.device) -> None:
        self.workload, self.where = workload, where
        self._view: View | None = None
        self._shown: Inputs = {}
        self.count = len(next(iter(columns.values())))
        small = sum(values.nbytes for values in columns.values()) <= _RESIDENT_BYTES
        resident = where if small and not workload.augments else torch.device("cpu")
        self.columns: dict[str, Tensor] = {}
        for name, values in columns.items():
            try:
                self.columns[name] = torch.from_numpy(np.ascontiguousarray(values)).to(resident)
            except TypeError as error:
                raise WorkloadError(
                    f"column {name!r} has dtype {values.dtype}, which torch cannot hold; make numbers of it in splits()"
                ) from error

    @cached_property
    def lengths(self) -> RowLengths:
        """By which batches are cut behind their longest row."""
        return RowLengths(self.workload, self.columns)

    def show(self, view: View | None) -> None:
        """From now on every batch is of this view, whatever generator is given; None: of the rows themselves."""
        if view != self._view:
            self._shown = view.inputs(self.workload, self.columns) if view is not None else {}
            self._view = view

    def __call__(self, index: Tensor, augment: torch.Generator | None, *, cut: bool = False) -> TrainingBatch:
        """The rows of these numbers (int64 [N]): of the view that is shown; else augmented if a generator is given.

        Args:
            cut: behind the longest of them, where the workload says what fills rows up; else as wide as the model is
                measured.
        """
        inputs, targets = self.workload.batch({n: v[index.to(v.device)] for n, v in self.columns.items()})
        if self._view is not None:
            inputs = {name: values[index] for name, values in self._shown.items()}
        elif augment is not None and self.workload.augments:
            inputs = self.workload.augment(inputs, augment)
        if cut and self.lengths:
            changed = self._view is not None or (augment is not None and self.workload.augments)
            inputs = self.lengths.cut(inputs, index, changed=changed)
        inputs = {name: value.to(self.where) for name, value in inputs.items()}
        return TrainingBatch(self.workload.preprocess(inputs), targets.to(self.where), index, self._view)

    def random_batches(self, count: int, *, batch_size: int, seed: int) -> Iterator[TrainingBatch]:
        """At most ``count`` batches of random rows as they are, no row twice; a batch of one row is left out."""
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(seed))
        parts: tuple[Tensor, ...] = torch.split(order, batch_size)
        return (self(part, None, cut=True) for part in parts[:count] if len(part) > 1)


def call_model(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """What the model answers to preprocessed inputs; WorkloadError names the shapes if it does not take them.

    RankLost: the model's weights are split among processes, of which one is gone.
    """
    shapes = ", ".join(f"{name} {describe_tensor(value)}" for name, value in inputs.items())
    try:
        outputs = model(**inputs)
    except torch.OutOfMemoryError:  # a RuntimeError that says nothing against the model
        raise
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        if transport_failed(error):  # the model's weights are split among processes
            raise RankLost(f"this rank lost another: {error}") from error
        raise WorkloadError(
            f"{type(model).__name__} does not take the inputs {shapes}: {error}; inputs arrive by name, as "
            "preprocess() returns them"
        ) from error
    rows = len(next(iter(inputs.values())))
    if not isinstance(outputs, Tensor) or outputs.ndim < 1 or len(outputs) != rows:
        raise WorkloadError(
            f"{type(model).__name__} answered {describe_answer(outputs)} to {shapes}; it must answer one tensor "
            "[N, ...]: return that one from forward(), or wrap the model in workload.model()"
        )
    return outputs


def describe_tensor(tensor: Tensor) -> str:
    """Like ``float32[7, 10]``."""
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
