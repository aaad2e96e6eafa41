"""Randomness that depends on nothing but the seed and the epoch."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterator

import numpy as np
import torch

from model_registry.manifest import hash_bytes

_KEYS = 624
"""Words of a Mersenne twister (Matsumoto and Nishimura 1998)."""


def derive(seed: int, *place: int) -> int:
    """A seed of its own for each place in a training (epoch; or epoch, step, shard): no generator's state is kept."""
    text = "/".join(map(str, (seed, *place)))
    return int.from_bytes(bytes.fromhex(hash_bytes(text.encode())[:12]), "little")


def seed_everything(seed: int, *place: int) -> None:
    """Dropout and the user's own augmentations may use any of the global generators."""
    derived = derive(seed, *place)
    torch.manual_seed(derived)
    random.seed(derived)
    np.random.seed(derived % (1 << 32))


def random_state(device: torch.device) -> torch.Tensor:
    """Of the global generators of torch, that of the device too, of Python and NumPy, as bytes on the CPU."""
    _, words, pause = random.getstate()
    _, keys, place, has, cached = np.random.get_state(legacy=True)
    whole = np.array([*words, *np.asarray(keys), place, has], dtype=np.uint32)
    broken = np.array([math.nan if pause is None else pause, cached], dtype=np.float64)
    states = [torch.from_numpy(values.view(np.uint8)) for values in (whole, broken)]
    states.append(torch.get_rng_state())
    if device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state(device).cpu())
    return torch.cat(states)


def set_random_state(state: torch.Tensor, device: torch.device) -> None:
    """Have the generators go on from a state of :func:`random_state`."""
    state = state.cpu()
    words = len(random.getstate()[1])
    ends = (4 * (words + _KEYS + 2), 4 * (words + _KEYS + 2) + 16)
    whole = state[: ends[0]].numpy().copy().view(np.uint32)
    pause, cached = state[ends[0] : ends[1]].numpy().copy().view(np.float64).tolist()
    random.setstate((3, tuple(whole[:words].tolist()), None if math.isnan(pause) else pause))
    place, has = whole[-2:].tolist()
    np.random.set_state(("MT19937", whole[words:-2], place, has, cached))
    size = torch.get_rng_state().numel()
    torch.set_rng_state(state[ends[1] : ends[1] + size].clone())
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state[ends[1] + size :].clone(), device)


@contextlib.contextmanager
def seeded(seed: int, number: int) -> Iterator[torch.Generator]:
    """All generators as of this seed and number while it lasts, and one more; the global ones are left as found."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            seed_everything(seed, number)
            yield torch.Generator().manual_seed(derive(seed, number))
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _cpu_rng() -> contextlib.AbstractContextManager[None]:
    return torch.random.fork_rng(devices=[])


@contextlib.contextmanager
def reproducible(where: torch.device, deterministic: bool) -> Iterator[None]:
    """Leave the global generators and switches as they were found."""
    before = torch.get_deterministic_debug_mode()
    benchmark = torch.backends.cudnn.benchmark
    python, numpy = random.getstate(), np.random.get_state()
    try:
        # The same as use_deterministic_algorithms(), which would import the whole compiler to tell it.
        torch.set_deterministic_debug_mode("error" if deterministic else "default")
        torch.backends.cudnn.benchmark = not deterministic and benchmark
        with torch.random.fork_rng(devices=[where], device_type=where.type) if where.type != "cpu" else _cpu_rng():
            yield
    except RuntimeError as error:
        if "deterministic" in str(error):
            error.add_note("set `deterministic: false` to allow it; results will then vary a little between runs")
        raise
    finally:
        torch.set_deterministic_debug_mode(before)
        torch.backends.cudnn.benchmark = benchmark
        random.setstate(python)
        np.random.set_state(numpy)
