"""What a training has come to: the curves, the best weights, and the checkpoint that holds both."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from model_registry.manifest import canonical_json, hash_bytes
from tasks.running.ranks import Ranks
from tasks.torch_models.fit_checkpoint import Checkpoints, CheckpointUnreadable, pack, unpack
from tasks.torch_models.fit_layout import match_layout
from tasks.torch_models.split_checkpoint import PartedCheckpoints, load_split, save_split
from tasks.torch_models.split_tensor import SplitTensor, is_split, split_like

History = list[dict[str, float | int]]
"""One row per epoch: ``epoch`` (from 1), ``train_loss``, ``val_loss``, ``val_metric``, ``lr`` (its last)."""

_log = logging.getLogger("winnow.fit")


@runtime_checkable
class Gathering(Protocol):
    """What shares a training out so that the optimizer's state lies in parts: it keeps the state, and forgets what is
    others'."""

    def save(
        self,
        checkpoints: Checkpoints,
        epoch: int,
        tree: Callable[[], dict[str, Any]],
        optimizer: torch.optim.Optimizer,
        *,
        last: bool,
    ) -> None:
        """Save the whole state; every rank calls it."""

    def keep_own(self, optimizer: torch.optim.Optimizer) -> None:
        """Forget the optimizer's state of other ranks' parameters."""


class FitState:
    """What a training has come to so far: everything that a checkpoint holds.

    Args:
        model: what is trained.
        beside: what is trained along, the objective's own parameters.
        optimizer, scaler: theirs.
        where: the device.
        settings: whatever else makes this training another one than the next.
    """

    def __init__(
        self,
        model: nn.Module,
        beside: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        *,
        where: torch.device,
        settings: tuple[object, ...],
    ) -> None:
        self.model, self.beside, self.optimizer, self.scaler, self.where = model, beside, optimizer, scaler, where
        self.fingerprint = _fingerprint(model, beside, settings)
        self.history: History = []
        self.seconds: list[float] = []
        """Of each epoch, judging included. Not part of the history, which is the same bytes on every machine."""
        self.best: dict[str, Tensor] = {}
        self.best_epoch = 0
        self.finished = False
        self.pipeline: Gathering | None = None
        self._turn = "b"

    def record(
        self, row: dict[str, float | int], better: str, *, seconds: float, epochs: int, patience: int | None
    ) -> None:
        """Add the epoch, keep the weights if it is the best one yet, and see whether training is over."""
        self.history.append(row)
        self.seconds.append(seconds)
        sign = 1.0 if better == "higher" else -1.0

        def rank(row: dict[str, float | int]) -> tuple[float, float]:
            return sign * row["val_metric"], -row["val_loss"]

        epoch = len(self.history)
        if self.best_epoch == 0 or rank(row) > rank(self.history[self.best_epoch - 1]):
            self.best_epoch = epoch
            self.best = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.finished = epoch == epochs or (patience is not None and epoch - self.best_epoch >= patience)

    def save(self, checkpoints: Checkpoints, epoch: int) -> None:
        """Keep all of it as a checkpoint; every rank calls it."""
        ranks = Ranks.current()
        if self._split() and isinstance(checkpoints, PartedCheckpoints):
            self._turn = "a" if self._turn == "b" else "b"
            save_split(self._tree(), checkpoints, epoch, last=self.finished, ranks=ranks, turn=self._turn)
        elif self.pipeline is not None:
            self.pipeline.save(checkpoints, epoch, self._tree, self.optimizer, last=self.finished)
        elif ranks.number == 0:
            checkpoints.save(epoch, lambda: pack(self._tree()), last=self.finished)

    def _tree(self) -> dict[str, Any]:
        return {
            "fingerprint": self.fingerprint,
            "model": dict(self.model.state_dict()),
            "beside": dict(self.beside.state_dict()),
            # Right after the best epoch both are the same tensors: store them once.
            "best": None if self.best_epoch == len(self.history) else self.best,
            "best_epoch": self.best_epoch,
            "history": self.history,
            "seconds": self.seconds,
            "finished": self.finished,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def resume(self, checkpoints: Checkpoints | None) -> int:
        """Load the last checkpoint if it is of this very training; the number of epochs it holds."""
        tree = self._found(checkpoints)
        # Parts are read by each rank; one that could not read them must not wait for the others.
        if self._split() and not Ranks.current().all(tree is not None):
            tree = None
        if tree is None:
            return 0
        likes = dict(self.model.state_dict())
        for kind in ("model", "best"):
            if tree[kind] is not None:
                tree[kind] = {name: split_like(value, likes[name]) for name, value in tree[kind].items()}
        self.model.load_state_dict(tree["model"])
        self.beside.load_state_dict(tree["beside"])
        self._load_optimizer(tree["optimizer"])
        if self.pipeline is not None:
            self.pipeline.keep_own(self.optimizer)
        self.scaler.load_state_dict(tree["scaler"])
        best = tree["model"] if tree["best"] is None else tree["best"]
        self.best = {name: value.to(self.where, copy=True) for name, value in best.items()}
        self.history, self.best_epoch, self.finished = tree["history"], tree["best_epoch"], tree["finished"]
        self.seconds = tree.get("seconds", [])  # checkpoints of before have none
        print(f"going on from the checkpoint after epoch {len(self.history)}", flush=True)
        return len(self.history)

    def _found(self, checkpoints: Checkpoints | None) -> dict[str, Any] | None:
        """What the last checkpoint holds, if it is of this very training."""
        data = checkpoints.load() if checkpoints is not None else None
        if data is None or checkpoints is None:
            return None
        try:
            tree = unpack(data)
            if "parts" in tree:
                self._turn = str(tree["parts"]["names"][0])[0]
                tree = load_split(tree, checkpoints)
        except CheckpointUnreadable as error:
            _log.warning("%s", error)
            return None
        if tree.get("fingerprint") != self.fingerprint:
            _log.warning("the checkpoint is of another training; this one starts at its beginning")
            return None
        return tree

    def _load_optimizer(self, tree: dict[str, Any]) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for number, entries in tree["state"].items():
            like = parameters[int(number)]
            for name, value in entries.items():
                if isinstance(value, SplitTensor) or (isinstance(value, Tensor) and value.shape == like.shape):
                    entries[name] = split_like(value, like)
        self.optimizer.load_state_dict(tree)
        match_layout(self.optimizer)

    def _split(self) -> bool:
        return any(map(is_split, self.model.parameters()))


def history_jsonl(history: History) -> bytes:
    """The curves as JSON lines, a row per epoch."""
    return b"".join(canonical_json(row) + b"\n" for row in history)


def _fingerprint(model: nn.Module, beside: nn.Module, settings: tuple[object, ...]) -> str:
    """Identity of a training, so that a checkpoint of another one is not taken for its own."""
    tensors = [*model.state_dict().items(), *beside.state_dict().items()]
    shapes = [[name, list(value.shape), str(value.dtype)] for name, value in tensors]
    return hash_bytes(canonical_json([shapes, [repr(s) for s in settings]]))
