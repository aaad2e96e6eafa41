"""A training's state on its way into the store and back: one safetensors file with its JSON inside, never pickle."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from model_registry.manifest import hash_bytes
from model_registry.store import Store, StoreUnavailable

_log = logging.getLogger("winnow.checkpoint")
_STATE = "state"
_PLAIN = (str, bool, int, float, type(None))
_NOT_FINITE = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}


class CheckpointUnreadable(Exception):
    """The bytes are no checkpoint of ours. It is set aside, and training starts at its beginning."""


class Checkpoints(Protocol):
    """Where the state of one training is kept. Only the last one is."""

    def save(self, epoch: int, make: Callable[[], bytes], *, last: bool) -> None:
        """Keep the state after ``epoch`` epochs, which ``make`` returns; ``last`` marks a finished training."""

    def load(self) -> bytes | None:
        """The state kept last; None where there is none."""


@dataclass
class StoreCheckpoints:
    """Checkpoints as one object of the plain bucket, so that a reader sees a whole one or the one before.

    An outage of the store while saving is logged, and the next epoch tries again. Saving costs at most ``share`` of
    the training's time: an epoch that ends sooner than that after the last save goes unsaved, so epochs of a few
    milliseconds lose a few on a kill, and longer ones none.
    """

    store: Store
    key: str
    share: float = 0.1
    _due: float = 0.0

    def save(self, epoch: int, make: Callable[[], bytes], *, last: bool) -> None:
        began = time.monotonic()
        if began < self._due and not last:
            return
        try:
            data = make()  # saves parts, where the state has some
            self.store.put(self.key, hash_bytes(data).encode() + data)
        except StoreUnavailable as error:  # training must not end for it
            _log.warning("checkpoint of epoch %d not saved: %s", epoch, error)
        ended = time.monotonic()
        self._due = ended + (ended - began) / self.share

    def save_part(self, name: str, data: bytes) -> None:
        """Keep a part of the state beside it, see tasks/torch_models/split_checkpoint.py."""
        self.store.put(f"{self.key}.{name}", data)

    def load_part(self, name: str) -> bytes | None:
        """The part of that name; None where there is none."""
        return self.store.get(f"{self.key}.{name}")

    def load(self) -> bytes | None:
        data = self.store.get(self.key)
        if data is None:
            return None
        digest, body = data[:64], data[64:]
        if digest != hash_bytes(body).encode():
            _log.warning("checkpoint %s is damaged; training starts at its beginning", self.key)
            return None
        return body


def pack(state: dict[str, Any]) -> bytes:
    """A tree of dicts, lists, tuples, JSON scalars and tensors as the bytes of one safetensors file.

    Tensors that share memory are stored apart. TypeError names what else is in the tree.
    """
    tensors: dict[str, Tensor] = {}
    tree = _strip(state, "", tensors)
    return safetensors.torch.save(tensors, metadata={_STATE: json.dumps(tree, allow_nan=False)})


def unpack(data: bytes) -> dict[str, Any]:
    """What :func:`pack` was given, tensors on the CPU.

    Raises:
        CheckpointUnreadable: the bytes are damaged or something else.
    """
    try:
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        state: dict[str, Any] = _fill(json.loads(header["__metadata__"][_STATE]), tensors)
    except (SafetensorError, ValueError, KeyError, TypeError, IndexError) as error:
        raise CheckpointUnreadable(f"not a checkpoint: {error}; delete it to train from the beginning") from error
    return state


def _strip(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """The tree as JSON, its tensors moved to ``tensors``. Containers become tagged lists: JSON has no int keys."""
    if isinstance(value, Tensor):
        # A clone: safetensors refuses tensors that share memory, and views would drag their whole base along.
        tensors[path] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return ["tensor", path]
    if isinstance(value, dict):
        return ["dict", [[k, _strip(v, f"{path}/{k}", tensors)] for k, v in value.items()]]
    if isinstance(value, (list, tuple)):
        tag = "list" if isinstance(value, list) else "tuple"
        return [tag, [_strip(v, f"{path}/{i}", tensors) for i, v in enumerate(value)]]
    if isinstance(value, float) and not math.isfinite(value):
        return ["float", str(value)]
    if isinstance(value, _PLAIN):
        return value
    raise TypeError(f"a checkpoint cannot hold {type(value).__name__} at {path!r}; use numbers, text or tensors")


def _fill(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, list):
        return value
    tag, body = value
    if tag == "tensor":
        return tensors[body]
    if tag == "float":
        return _NOT_FINITE[body]
    if tag == "dict":
        return {k: _fill(v, tensors) for k, v in body}
    items = [_fill(v, tensors) for v in body]
    return items if tag == "list" else tuple(items)
