"""Augmented versions of a training split, the same whenever they are made, so that answers to them can be kept.

With fresh augmentation the teacher is asked again for each batch, which costs more than the student's own step. A few
fixed views, taken in turn by epoch, keep most of the gain, and all students of a search share the teacher's answers.
Source: Shen and Xing 2022, "A Fast Knowledge Distillation Framework for Visual Recognition" (arXiv:2112.01528); Wu et
al. 2022, "TinyViT" (arXiv:2207.10666), section 3. Where a workload augments nothing, the rows as they are take turns
with what can be made of them without knowing what they are: images that are moved a little, or mixtures of two rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from model_registry.sizes import size_text
from tasks.running.errors import SpecError
from tasks.running.splits import Columns
from tasks.running.task_kind import TaskKind
from tasks.torch_models.fit_seeding import seeded
from tasks.torch_models.made_rows import codes_among, mixable, mixed, movable, moved
from tasks.workloads.workload import Inputs, Workload

_ROWS = 512
"""Rows augmented at a time: part of what a view is, for the generator is drawn from once per call."""
ViewKind = Literal["augmented", "moved", "mixed"]
"""What a view is made by: the workload's own augmentation, or what stands in for it."""
_MOST_BYTES = 2 << 30
"""Of a split that is changed without anybody having asked for it: a view is held in memory."""
_MOVABLE = ("classes", "binary", "labels")
"""Tasks whose answer is one of the whole image: it stays the same where the image is moved a little."""


@dataclass(frozen=True)
class View:
    """One augmented version of a split, made of the seed and its number (from 0) alone."""

    seed: int
    number: int
    kind: ViewKind = "augmented"

    @property
    def labelled(self) -> bool:
        """Whether the targets of the rows are those of the view too."""
        return self.kind != "mixed"

    def inputs(self, workload: Workload, columns: dict[str, Tensor]) -> Inputs:
        """The augmented inputs of all rows, in order, before preprocessing."""
        change: Callable[[Inputs, torch.Generator], Inputs] = workload.augment
        if self.kind == "moved":
            change = moved
        elif self.kind == "mixed":
            change = partial(mixed, codes=_codes(workload, columns))
        parts: list[Inputs] = []
        with seeded(self.seed, self.number) as generator:  # an augmentation may use the global generators too
            parts += [change(inputs, generator) for inputs in _blocks(workload, columns)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _blocks(workload: Workload, columns: dict[str, Tensor]) -> Iterator[Inputs]:
    """Inputs of all rows, on the CPU, in order."""
    rows = len(next(iter(columns.values())))
    for index in torch.split(torch.arange(rows), _ROWS):
        yield workload.batch({name: values[index.to(values.device)].cpu() for name, values in columns.items()})[0]


def _codes(workload: Workload, columns: dict[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for inputs in _blocks(workload, columns):
        here = codes_among(inputs)
        found = {name: found[name] & codes if name in found else codes for name, codes in here.items()}
    return found


@dataclass(frozen=True)
class Views:
    """The first ``count`` views of a seed: more of them keep the answers to the first.

    The first one of what is no augmentation of the workload's own is the rows as they are, None.
    """

    count: int
    seed: int
    kind: ViewKind = "augmented"

    def of_epoch(self, epoch: int) -> View | None:
        """The one that an epoch (from 1) sees."""
        return self._view((epoch - 1) % self.count)

    def all(self) -> tuple[View | None, ...]:
        return tuple(self._view(number) for number in range(self.count))

    def _view(self, number: int) -> View | None:
        return None if self.kind != "augmented" and number == 0 else View(self.seed, number, self.kind)


def view_kind(workload: Workload, train: Columns, task: TaskKind) -> ViewKind | None:
    """What views of this training split are made by; None: there are none."""
    if workload.augments:
        return "augmented"
    if sum(values.nbytes for values in train.values()) > _MOST_BYTES:
        return None
    some = {name: torch.from_numpy(np.ascontiguousarray(values[:_ROWS])) for name, values in train.items()}
    inputs, _ = workload.batch(some)
    if task in _MOVABLE and movable(inputs):
        return "moved"
    return "mixed" if mixable(workload, inputs) else None


def wanted_views(workload: Workload, count: int | None, seed: int, train: Columns, task: TaskKind) -> Views | None:
    """The views of this training split that a spec asks for, if any.

    Raises:
        SpecError: the workload augments nothing, and nothing can be made of its rows.
    """
    if count is None:
        return None
    kind = view_kind(workload, train, task)
    if kind is None:
        raise SpecError(
            f"views: {count} are augmented versions of the training split, but {workload.ref.path} has no "
            "augment(inputs, generator); codes, tokens, rows of different lengths and splits of more than "
            f"{size_text(_MOST_BYTES)} are not changed by themselves: write one, or leave views out"
        )
    return Views(count, seed, kind)
