"""Augmented versions of a training split, the same whenever they are made, so that answers to them can be kept.

With fresh augmentation the teacher is asked again for each batch, which costs more than the student's own step. A few
fixed views, taken in turn by epoch, keep most of the gain, and all students of a search share the teacher's answers.
Source: Shen and Xing 2022, "A Fast Knowledge Distillation Framework for Visual Recognition" (arXiv:2112.01528); Wu et
al. 2022, "TinyViT" (arXiv:2207.10666), section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.running.errors import SpecError
from tasks.torch_models.fit_seeding import seeded
from tasks.workloads.workload import Inputs, Workload

_ROWS = 512
"""Rows augmented at a time: part of what a view is, for the generator is drawn from once per call."""


@dataclass(frozen=True)
class View:
    """One augmented version of a split, made of the seed and its number (from 0) alone."""

    seed: int
    number: int

    def inputs(self, workload: Workload, columns: dict[str, Tensor]) -> Inputs:
        """The augmented inputs of all rows, in order, before preprocessing."""
        rows = len(next(iter(columns.values())))
        parts: list[Inputs] = []
        with seeded(self.seed, self.number) as generator:  # an augmentation may use the global generators too
            for index in torch.split(torch.arange(rows), _ROWS):
                inputs, _ = workload.batch({name: values[index] for name, values in columns.items()})
                parts.append(workload.augment(inputs, generator))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@dataclass(frozen=True)
class Views:
    """The first ``count`` views of a seed: more of them keep the answers to the first."""

    count: int
    seed: int

    def of_epoch(self, epoch: int) -> View:
        """The one that an epoch (from 1) sees."""
        return View(self.seed, (epoch - 1) % self.count)

    def all(self) -> tuple[View, ...]:
        return tuple(View(self.seed, number) for number in range(self.count))


def wanted_views(workload: Workload, count: int | None, seed: int) -> Views | None:
    """The views that a spec asks for, if any.

    Raises:
        SpecError: the workload augments nothing.
    """
    if count is not None and not workload.augments:
        raise SpecError(
            f"views: {count} are augmented versions of the training split, but {workload.ref.path} has no "
            "augment(inputs, generator): write one, or leave views out"
        )
    return None if count is None else Views(count, seed)
