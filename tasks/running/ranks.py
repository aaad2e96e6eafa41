"""Processes that train one model together: who each is, how they add up, and what they must agree on.

Each is a rank of torch's process group and runs the same stage from its beginning to its end; what is shared out are
the shards of each training step and the rows of each evaluation.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from model_registry.manifest import hash_bytes
from tasks.running.errors import RankLost, RanksDisagree, SpecError

_ADDRESS_OF = 0x8915
"""SIOCGIFADDR of Linux's sockios.h."""


@dataclass(frozen=True)
class Ranks:
    """This process's number (from 0) among those that train together, and how many they are."""

    number: int = 0
    count: int = 1

    @classmethod
    def current(cls) -> Ranks:
        """Those of torch's process group, whoever made it (torchrun, say); a process of its own without one."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    def share(self, parts: int) -> range:
        """The numbers of this rank's parts of so many: neighbours, as many as any other has or one more."""
        return range(self.number * parts // self.count, (self.number + 1) * parts // self.count)

    def add_up(self, sums: list[Tensor]) -> list[Tensor]:
        """The sums of all ranks, with the additions of a binary tree over the ranks in their order.

        By recursive doubling (Thakur, Rabenseifner, Gropp 2005, "Optimization of collective communication operations in
        MPICH", section 4.1): each rank does all additions that end in its result, and a sum of two is commutative, so
        that all have the same bits. Each sends the whole of it once for every doubling.

        Args:
            sums: tensors of the same shapes and types on every rank, a power of two of them; left as they are.
        """
        step = 1
        while step < self.count:
            peer = self.number ^ step
            theirs = _exchanged(sums, peer)
            sums = [ours + other for ours, other in zip(sums, theirs, strict=True)]
            step *= 2
        return sums

    def total(self, value: Tensor) -> Tensor:
        """The sum over all ranks, the same bits on each, in the order of torch's transport; any number of ranks."""
        summed = value.detach().clone()
        if self.count > 1:
            with others_there("lost another"):
                dist.all_reduce(summed)
        return summed

    def of_first(self, value: Tensor) -> Tensor:
        """The value, of one shape and type everywhere, as the first rank has it."""
        return self.of(0, value)

    def of(self, rank: int, value: Tensor) -> Tensor:
        """The same as that rank has it."""
        return _broadcast(value.detach().clone(), rank) if self.count > 1 else value

    def collect(self, rows: Tensor, counts: list[int]) -> Tensor:
        """The rows [n, ...] of all ranks in their order, n by rank in ``counts``."""
        if self.count == 1:
            return rows
        parts = []
        for rank, count in enumerate(counts):
            part = rows if rank == self.number else rows.new_empty((count, *rows.shape[1:]))
            parts.append(_broadcast(part.contiguous(), rank))
        return torch.cat(parts)

    def all(self, flag: bool) -> bool:
        """Whether it is so on every rank: what follows must be the same for all, or they wait for each other."""
        return all(map(bool, self._of_each(torch.tensor([flag]))))

    def agree(self, facts: Mapping[str, str]) -> None:
        """See that all ranks have the same facts.

        Raises:
            RanksDisagree: names those that differ.
        """
        names = sorted(facts)
        ours = torch.tensor([list(bytes.fromhex(hash_bytes(facts[name].encode()))) for name in names])
        for rank, theirs in enumerate(self._of_each(ours)):
            differ = [name for name, own, other in zip(names, ours, theirs, strict=True) if not torch.equal(own, other)]
            if differ:
                raise RanksDisagree(
                    f"rank {self.number} and rank {rank} of {self.count} differ in {', '.join(differ)}: processes that "
                    "train together must run the same code on the same data, and what the code does must depend on "
                    "nothing but seed, epoch and rows"
                )

    def _of_each(self, value: Tensor) -> list[Tensor]:
        """The tensor, of one shape and type everywhere, as each rank has it."""
        if self.count == 1:
            return [value]
        return [_broadcast(value.clone(), rank) for rank in range(self.count)]


@contextlib.contextmanager
def joined(
    number: int, count: int, *, meeting: str, seconds: float, beside: tuple[int, int] | None = None, address: str = ""
) -> Iterator[Ranks]:
    """Be one of the processes that train together while it lasts.

    Args:
        meeting: where they find each other: ``file://`` and a path where nothing is yet, if all are on this machine;
            else ``tcp://`` and address and port of the first one's machine, where nobody listens yet.
        seconds: how long one waits for another before it is taken for lost.
        beside: this one's number among those on this machine, and how many they are; None: all of them.
        address: of this machine, where the others are elsewhere.

    Raises:
        RankLost: not all of them came.
    """
    # Where they are on one machine nothing listens outside of it.
    interface = interface_of(address) if address else "lo"
    if interface:
        os.environ["GLOO_SOCKET_IFNAME"] = interface
    backend = _backend(_has_accelerator(*(beside or (number, count))))
    with others_there("did not find the other ranks"):
        dist.init_process_group(
            backend,
            init_method=meeting,
            rank=number,
            world_size=count,
            timeout=timedelta(seconds=seconds),
        )
    yield Ranks(number, count)
    dist.destroy_process_group()  # not after an error: the process ends, and ending a broken group may wait


@contextlib.contextmanager
def by_environment(*, wanted: bool, cpu: bool, seconds: float = 600.0) -> Iterator[Ranks]:
    """Be one of the processes that torchrun started, or whoever else sets RANK, WORLD_SIZE and MASTER_ADDR.

    Where there is a process group already, it is used and left as it is; without those variables, or if it is not
    ``wanted``, this is a process of its own. The group is made for the time that this lasts, any number of times.

    Args:
        cpu: whether the training is to run on the CPU even where there are GPUs.
        seconds: how long one waits for another before it is taken for lost.

    Raises:
        SpecError: the variables are there in part, or are no numbers that fit.
        RankLost: not all of them came.
    """
    place = _place(os.environ) if wanted and not (dist.is_available() and dist.is_initialized()) else None
    if place is None or place.count == 1:
        yield Ranks.current()
        return
    local = int(os.environ.get("LOCAL_RANK", place.number))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", place.count))
    with others_there("did not find the other ranks"):
        met = dist.rendezvous("env://", timeout=timedelta(seconds=seconds))  # type: ignore[attr-defined]
        store, number, count = next(met)
        # A prefix of its own: what the group before has left in the store leads to sockets that are closed.
        store = dist.PrefixStore(f"winnow-{next(_meetings)}", store)  # type: ignore[attr-defined]
        dist.init_process_group(
            _backend(not cpu and _has_accelerator(local, here)),
            store=store,
            rank=number,
            world_size=count,
            timeout=timedelta(seconds=seconds),
        )
    yield place
    dist.destroy_process_group()


_meetings = itertools.count(1)


def _place(environment: Mapping[str, str]) -> Ranks | None:
    """Which rank the environment says that this is; None where it says nothing."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if not all(name in environment for name in names[:2]):
        return None
    said = ", ".join(f"{name}={environment.get(name, '')}" for name in names)
    try:
        number, count = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    except ValueError as error:
        raise SpecError(f"{said}: RANK and WORLD_SIZE must be whole numbers; start the script with torchrun") from error
    if not 0 <= number < count:
        raise SpecError(f"{said}: RANK must be at least 0 and below WORLD_SIZE; start the script with torchrun")
    if count > 1 and not all(environment.get(name) for name in names):
        raise SpecError(
            f"{said}: the processes need MASTER_ADDR and MASTER_PORT to meet; start the script with torchrun"
        )
    return Ranks(number, count)


def interface_of(address: str) -> str:
    """Name of this machine's network interface of an IPv4 address; empty where none has it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # one without an address
                answer = fcntl.ioctl(asking.fileno(), _ADDRESS_OF, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return ""


def _has_accelerator(number: int, count: int) -> bool:
    """Whether each process on this machine has an accelerator of its own; this one then uses that of its number."""
    found = torch.accelerator.is_available() and torch.accelerator.device_count() >= count
    if found:
        torch.accelerator.set_device_index(number)
    return found


def _backend(accelerated: bool) -> str:
    """How the processes talk: gloo on CPUs, else what the accelerator's own is, NCCL on NVIDIA's GPUs."""
    device = torch.accelerator.current_accelerator() if accelerated else None
    return "gloo" if device is None else str(dist.get_default_backend_for_device(device))


@contextlib.contextmanager
def others_there(what: str, *, computing: bool = False) -> Iterator[None]:
    """Tell what torch raises where a process is gone as RankLost; ``what`` this rank did, like "lost rank 1".

    Args:
        computing: whether a model computes meanwhile, whose own errors are left as they are.
    """
    try:
        yield
    except RuntimeError as error:  # of any transport: closed connections, resets, time
        if computing and not transport_failed(error):
            raise
        raise RankLost(f"this rank {what}: {error}") from error


def transport_failed(error: Exception) -> bool:
    """Whether torch says that another process is gone, rather than that a model cannot compute."""
    return (dist.is_available() and isinstance(error, dist.DistError)) or "gloo/" in str(error) or "NCCL" in str(error)


def _exchanged(sums: list[Tensor], peer: int) -> list[Tensor]:
    """What the peer has at the places of these; one message for each type."""
    theirs: list[Tensor] = list(sums)
    for dtype in dict.fromkeys(value.dtype for value in sums):
        places = [place for place, value in enumerate(sums) if value.dtype == dtype]
        flat = torch.cat([sums[place].reshape(-1) for place in places])
        other = torch.empty_like(flat)
        with others_there(f"lost rank {peer}"):
            sent = [dist.P2POp(dist.isend, flat, peer), dist.P2POp(dist.irecv, other, peer)]
            for work in dist.batch_isend_irecv(sent):
                work.wait()
        parts = torch.split(other, [sums[place].numel() for place in places])
        for place, part in zip(places, parts, strict=True):
            theirs[place] = part.view(sums[place].shape)
    return theirs


def _broadcast(value: Tensor, rank: int) -> Tensor:
    """The value as that rank has it."""
    device = torch.accelerator.current_accelerator() if dist.get_backend() != "gloo" else None
    carried = value if device is None else value.to(device)
    with others_there(f"lost rank {rank}, or another"):
        dist.broadcast(carried, src=rank)
    return carried.to(value.device)
