"""Rows that are filled up to one length, in batches that are cut behind the longest of them.

Most texts are far shorter than the longest that a model takes: without their filling they train several times faster,
if batches are of texts of about one length. An answer must not depend on what fills a row up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from tasks.workloads.workload import Inputs, Workload, row_filling

_MULTIPLE = 8
"""Lengths are multiples of it, as matrix units of accelerators like them."""
_NEIGHBOURS = 16
"""Batches whose rows are sorted together: more would be cut no shorter, and make batches that resemble each other."""
_BLOCK = 4096
"""Rows that are looked at together."""


class RowLengths:
    """How many places of each row are more than filling, by input.

    Args:
        workload: says by ``padding()`` what fills up which input.
        columns: all rows of a split, tensors [rows, ...].
    """

    def __init__(self, workload: Workload, columns: Mapping[str, Tensor]) -> None:
        self._filled = row_filling(workload)
        rows = len(next(iter(columns.values())))
        blocks = torch.split(torch.arange(rows), _BLOCK) if self._filled else ()
        parts = [self._content(workload.batch({n: v[b.to(v.device)] for n, v in columns.items()})[0]) for b in blocks]
        self._lengths = {name: torch.cat([part[name] for part in parts]) for name in self._filled}

    def __bool__(self) -> bool:
        """Whether rows can be cut."""
        return bool(self._filled)

    def cut(self, inputs: Inputs, index: Tensor, *, changed: bool) -> Inputs:
        """The inputs without the places that are filling in every row.

        Args:
            inputs: by name, [N, ...]. ``index``: int64 [N], which rows they are.
            changed: whether they are other than those that lengths were taken of, by augmentation.
        """
        lengths = self._content(inputs) if changed else {name: found[index] for name, found in self._lengths.items()}
        result = dict(inputs)
        for name, (dim, _) in self._filled.items():
            longest = math.ceil(max(1, int(lengths[name].max())) / _MULTIPLE) * _MULTIPLE
            result[name] = inputs[name].narrow(dim, 0, min(longest, inputs[name].shape[dim]))
        return result

    def batches(self, used: Tensor, count: int, generator: torch.Generator) -> list[Tensor]:
        """Rows in random batches whose sizes differ by at most one; of about one length, where they have lengths.

        Args:
            used: int64 [N], the rows. ``count``: of batches.
        """
        order = used[torch.randperm(len(used), generator=generator)]
        if not self:
            return list(torch.tensor_split(order, count))
        total = self._total()
        parts = torch.tensor_split(order, math.ceil(count / _NEIGHBOURS))
        alike = torch.cat([part[torch.argsort(total[part], stable=True)] for part in parts])
        found = torch.tensor_split(alike, count)
        return [found[number] for number in torch.randperm(count, generator=generator).tolist()]

    def order(self, count: int) -> Tensor:
        """The numbers 0 to ``count`` of all rows as they are, or by length."""
        return torch.argsort(self._total(), stable=True) if self else torch.arange(count)

    def usual(self, rows: int, count: int) -> Tensor:
        """``count`` of all ``rows`` that take about as long as others do: the first, or those of the mean length."""
        order, start = self.order(rows), 0
        if self:
            total = self._total().double()
            middle = int(torch.searchsorted(total[order], total.mean()))
            start = min(max(0, middle - count // 2), rows - count)
        return order[start : start + count]

    def _total(self) -> Tensor:
        return torch.stack([*self._lengths.values()]).sum(dim=0)

    def _content(self, inputs: Inputs) -> dict[str, Tensor]:
        """Of each row one more than the last place that is no filling, int64 [N]."""
        found = {}
        for name, (dim, value) in self._filled.items():
            along = (inputs[name] != value).movedim(dim, 1)
            places = along.reshape(*along.shape[:2], -1).any(dim=2)
            numbers = torch.arange(1, places.shape[1] + 1, device=places.device)
            found[name] = (places * numbers).amax(dim=1).cpu()
        return found
