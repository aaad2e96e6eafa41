"""Checkpoints of a training whose tensors are split: each rank saves its rows, and any number of ranks goes on.

The checkpoint itself holds everything else, and of each split tensor its shape; beside it lies a part for each rank, a
safetensors file like the checkpoint. Two sets of parts take turns, so that those that the checkpoint names are whole
until the next checkpoint is. (torch's distributed checkpoint describes itself in a pickle, which is not read here.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from model_registry.manifest import hash_bytes
from model_registry.store import StoreUnavailable
from tasks.running.ranks import Ranks
from tasks.torch_models.fit_checkpoint import Checkpoints, CheckpointUnreadable, pack, unpack
from tasks.torch_models.split_tensor import SplitTensor, is_split, own_rows

_SPLIT = "a tensor in parts"


@runtime_checkable
class PartedCheckpoints(Checkpoints, Protocol):
    """Checkpoints that can have parts beside them."""

    def save_part(self, name: str, data: bytes) -> None:
        """Keep a part; StoreUnavailable where it cannot be kept."""

    def load_part(self, name: str) -> bytes | None:
        """The part of that name; None where there is none."""


def save_split(
    tree: dict[str, Any], checkpoints: PartedCheckpoints, epoch: int, *, last: bool, ranks: Ranks, turn: str
) -> None:
    """Save a state with split tensors; every rank calls it, and the first decides whether it is time.

    Args:
        tree: as for :func:`tasks.torch_models.fit_checkpoint.pack`.
        turn: name of the set of parts, another one than that of the last checkpoint.
    """
    asked = False

    def make() -> bytes:
        nonlocal asked
        asked = True
        ranks.of_first(torch.ones(1))
        return pack(_save_part(tree, checkpoints, ranks, turn))

    if ranks.number == 0:
        checkpoints.save(epoch, make, last=last)
        if not asked:
            ranks.of_first(torch.zeros(1))
    elif ranks.of_first(torch.zeros(1)).item():
        try:
            _save_part(tree, checkpoints, ranks, turn)
        except StoreUnavailable:
            return  # the first rank says so


def load_split(tree: dict[str, Any], checkpoints: Checkpoints) -> dict[str, Any]:
    """The state with a SplitTensor in the place of each split one.

    Raises:
        CheckpointUnreadable: a part is gone or damaged.
    """
    found = []
    for name, digest in zip(tree["parts"]["names"], tree["parts"]["digests"], strict=True):
        data = checkpoints.load_part(name) if isinstance(checkpoints, PartedCheckpoints) else None
        if data is None or hash_bytes(data) != digest:
            raise CheckpointUnreadable(f"part {name} of the checkpoint is gone or damaged; training starts again")
        found.append(unpack(data))
    filled: dict[str, Any] = _replaced(
        tree["state"],
        lambda value: isinstance(value, dict) and _SPLIT in value,
        lambda value, _: SplitTensor(value[_SPLIT], tuple(value["shape"]), found),
    )
    return filled


def _save_part(tree: dict[str, Any], checkpoints: PartedCheckpoints, ranks: Ranks, turn: str) -> dict[str, Any]:
    """Save this rank's rows; what the checkpoint itself holds. StoreUnavailable if any rank could not save."""
    mine: dict[str, Tensor] = {}

    def move(value: Any, place: str) -> dict[str, Any]:
        mine[place] = own_rows(value)
        return {_SPLIT: place, "shape": list(value.shape)}

    rest = _replaced(tree, lambda value: isinstance(value, Tensor) and is_split(value), move)
    data = pack(mine)
    names = [f"{turn}-{rank + 1}-of-{ranks.count}" for rank in range(ranks.count)]
    try:
        checkpoints.save_part(names[ranks.number], data)
        error = None
    except StoreUnavailable as problem:
        error = problem
    digest = torch.tensor([*bytes.fromhex(hash_bytes(data))]).unsqueeze(0)
    digests = ranks.collect(digest, [1] * ranks.count)
    if not ranks.all(error is None):
        raise error or StoreUnavailable("another rank could not save its part")
    return {"parts": {"names": names, "digests": [bytes(row.tolist()).hex() for row in digests]}, "state": rest}


def _replaced(
    value: Any, wanted: Callable[[Any], bool], instead: Callable[[Any, str], Any], place: str = "part"
) -> Any:
    """The tree of dicts, lists and tuples with something else where it is wanted."""
    if wanted(value):
        return instead(value, place)
    if isinstance(value, dict):
        return {k: _replaced(v, wanted, instead, f"{place}/{k}") for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_replaced(v, wanted, instead, f"{place}/{n}") for n, v in enumerate(value))
    return value
