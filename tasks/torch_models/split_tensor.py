"""Tensors of which each process has some rows: DTensors of FSDP2, known here without importing what makes them.

That import takes seconds, which a training on one process should not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tasks.running.ranks import Ranks


class SplitTensor:
    """One that a checkpoint holds in parts.

    Args:
        place: its name in each part.
        shape: the whole one's, of one dimension or more.
        parts: what each rank saved, in their order.
    """

    def __init__(self, place: str, shape: tuple[int, ...], parts: list[dict[str, Tensor]]) -> None:
        self.shape, self._parts, self._place = shape, parts, place

    def rows(self, first: int, last: int) -> Tensor:
        """From one row to another, [last - first, ...]."""
        count, found = len(self._parts), []
        for rank, part in enumerate(self._parts):
            begin, end = rows_of(rank, count, self.shape[0])
            if begin < last and first < end:
                found.append(part[self._place][max(first, begin) - begin : min(last, end) - begin])
        return torch.cat(found) if found else self._parts[0][self._place][:0]


def is_split(value: Tensor) -> bool:
    """Whether this rank has only its rows of it."""
    return hasattr(value, "to_local")


def own_rows(value: Tensor) -> Tensor:
    """This rank's rows of a split tensor, in the tensor's memory; may be none."""
    rows: Tensor = value.to_local() if is_split(value) else value  # type: ignore[attr-defined]
    return rows


def rows_of(rank: int, count: int, rows: int) -> tuple[int, int]:
    """The first row that a rank has of a split tensor, and the one after its last: torch's chunks."""
    chunk = -(-rows // count)
    return min(rank * chunk, rows), min((rank + 1) * chunk, rows)


def split_like(value: Tensor | SplitTensor, like: Any) -> Tensor:
    """The value, of which every rank has all or can read all, split among the ranks as the other tensor is."""
    shape = tuple(value.shape)
    rows = value.rows if isinstance(value, SplitTensor) else lambda first, last: value[first:last]
    if not is_split(like):
        return rows(0, shape[0]) if isinstance(value, SplitTensor) else value
    ranks, whole = Ranks.current(), torch.empty(shape, device="meta")
    local = rows(*rows_of(ranks.number, ranks.count, shape[0])).to(like.device, copy=True)
    split: Tensor = type(like).from_local(
        local, like.device_mesh, like.placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )
    return split
