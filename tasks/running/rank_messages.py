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

    Two ranks may send to each other at the same time: by way of the CPU and gloo whatever device computes, since NCCL
    keeps what passes between two ranks in one order for both directions, in which they would wait for each other. What
    one sends to another arrives in its order. Every rank makes one at the same time.

    Args:
        device: where received tensors are to be.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with others_there("lost another"):
            self._group = None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
        self._on_their_way: list[tuple[dist.Work, Tensor, int]] = []

    def send(self, value: Tensor, rank: int) -> None:
        """Begin to send it; it may be changed and freed at once."""
        # What computes with another layout may take another way to its answer, and so to other bits.
        strides = value.stride()
        order = sorted(range(value.ndim), key=lambda place: -strides[place])
        flat = value.detach().permute(order).contiguous().reshape(-1)
        facts = [_TYPES.index(value.dtype), value.ndim, *order, *(value.shape[place] for place in order)]
        head = torch.zeros(2 + 2 * _MOST_DIMENSIONS, dtype=torch.int64)
        head[: len(facts)] = torch.tensor(facts)
        carried = [head, (flat.view(torch.uint8) if value.dtype is torch.bool else flat).to("cpu", copy=True)]
        self._on_their_way = [sent for sent in self._on_their_way if not sent[0].is_completed()]
        for part in carried:
            with others_there(f"lost rank {rank}"):
                work = dist.isend(part, rank, self._group)
            assert work is not None
            self._on_their_way.append((work, part, rank))

    def receive(self, rank: int) -> Tensor:
        """The next tensor from that rank; waits for it."""
        head = torch.zeros(2 + 2 * _MOST_DIMENSIONS, dtype=torch.int64)
        with others_there(f"lost rank {rank}"):
            dist.recv(head, rank, self._group)
        number, ndim, *places = head.tolist()
        order, lying = places[:ndim], places[ndim : 2 * ndim]
        dtype = _TYPES[number]
        flat = torch.empty(torch.Size(lying).numel(), dtype=torch.uint8 if dtype is torch.bool else dtype)
        with others_there(f"lost rank {rank}"):
            dist.recv(flat, rank, self._group)
        value = flat.view(dtype).view(lying).to(self._device)
        return value.permute([order.index(place) for place in range(ndim)])

    def wait(self) -> None:
        """Until all that was sent has arrived."""
        for work, _, rank in self._on_their_way:
            with others_there(f"lost rank {rank}"):
                work.wait()
        self._on_their_way.clear()
