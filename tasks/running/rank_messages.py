"""Tensors from one rank to another while both go on computing."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from tasks.running.ranks import others_there

_TYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
)
_MOST_DIMENSIONS = 8


class RankMessages:
    """Tensors of any shape: what is received has the type, shape and layout of what was sent.

    Two ranks may send to each other at the same time. What one sends to another arrives in its order.

    Args:
        device: where received tensors are to be.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._carrier = torch.device("cpu") if dist.get_backend() == "gloo" else device
        self._on_their_way: list[tuple[dist.Work, Tensor, int]] = []

    def send(self, value: Tensor, rank: int) -> None:
        """Begin to send it; it may be changed and freed at once."""
        # A convolution may take another way to its answer, and so to other bits, where the layout is another one.
        last = value.ndim == 4 and value.is_contiguous(memory_format=torch.channels_last) and not value.is_contiguous()
        flat = (value.permute(0, 2, 3, 1) if last else value).detach().contiguous().reshape(-1)
        facts = [_TYPES.index(value.dtype), int(last), value.ndim, *value.shape]
        head = torch.zeros(3 + _MOST_DIMENSIONS, dtype=torch.int64)
        head[: len(facts)] = torch.tensor(facts)
        with others_there(f"lost rank {rank}"):
            for part in (head, flat.view(torch.uint8) if value.dtype is torch.bool else flat):
                carried = part.to(self._carrier, copy=True)
                work = dist.isend(carried, rank)
                assert work is not None
                self._on_their_way.append((work, carried, rank))

    def receive(self, rank: int) -> Tensor:
        """The next tensor from that rank; waits for it."""
        head = torch.zeros(3 + _MOST_DIMENSIONS, dtype=torch.int64, device=self._carrier)
        with others_there(f"lost rank {rank}"):
            dist.recv(head, rank)
            number, last, ndim, *shape = head.tolist()
            del shape[ndim:]
            n, *others = shape or [1]
            lying = [n, *others[1:], others[0]] if last else shape
            dtype = _TYPES[number]
            flat = torch.empty(
                torch.Size(lying).numel(), dtype=torch.uint8 if dtype is torch.bool else dtype, device=self._carrier
            )
            dist.recv(flat, rank)
        value = flat.view(dtype).view(lying).to(self._device)
        return value.permute(0, 3, 1, 2) if last else value

    def wait(self) -> None:
        """Until all that was sent has arrived."""
        for work, _, rank in self._on_their_way:
            with others_there(f"lost rank {rank}"):
                work.wait()
        self._on_their_way.clear()
