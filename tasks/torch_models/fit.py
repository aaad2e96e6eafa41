"""The one training loop. The loss is an argument: teachers, students and pruned models all pass through here."""

from __future__ import annotations

import contextlib
import importlib
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from model_registry.manifest import hash_bytes
from tasks.running.errors import SpecError, TrainingDiverged, WorkloadError
from tasks.running.ranks import Ranks, by_environment
from tasks.running.source_hash import closure_hash
from tasks.torch_models.fit_amp import Amp, amp_dtype
from tasks.torch_models.fit_checkpoint import Checkpoints
from tasks.torch_models.fit_layout import channels_last
from tasks.torch_models.fit_memory import smaller_batch_offered
from tasks.torch_models.fit_rows import Rows, answers, call_model, describe_tensor, judge, torch_device
from tasks.torch_models.fit_seeding import derive, reproducible, seed_everything
from tasks.torch_models.fit_state import FitState, Gathering, History
from tasks.torch_models.fit_threads import worthwhile_threads
from tasks.torch_models.micro_shards import MicroShards, Sharing, check_shards
from tasks.torch_models.objective import Hard, Objective, TrainingBatch, called_in_training
from tasks.torch_models.split_checkpoint import PartedCheckpoints
from tasks.torch_models.split_tensor import is_split
from tasks.torch_models.synced_batchnorm import synced_batchnorm
from tasks.torch_models.torch_engine import TorchEngine, check_engine, settled_engine
from tasks.torch_models.training import Training
from tasks.torch_models.training_data import TrainingData
from tasks.torch_models.views import Views
from tasks.workloads.workload import blocks_of

if TYPE_CHECKING:
    from tasks.torch_models.pipelined_shards import PipelinedShards
    from tasks.torch_models.split_model import SplitModel

_CHECK_EVERY = 20
"""Batches between looks at the loss on an accelerator, where each look waits for it."""


@dataclass(frozen=True)
class Fitted:
    """What a training came to. The model itself holds the best epoch's weights."""

    history: History
    best_epoch: int
    val_metric: float
    val_loss: float
    stopped_early: bool
    resumed_at: int
    """Epochs that a killed training before this one had done."""
    epoch_seconds: float | None = None
    """Of an epoch in the middle, judging included, those before an interruption too; None where none was timed."""

    def summary(self) -> dict[str, Any]:
        """The outcome as JSON; nothing in it tells whether training was interrupted."""
        return {
            "epochs": len(self.history),
            "best_epoch": self.best_epoch,
            "val_metric": self.val_metric,
            "val_loss": self.val_loss,
            "first_val_loss": float(self.history[0]["val_loss"]),
            "stopped_early": self.stopped_early,
        }


def fit(
    model: nn.Module,
    data: TrainingData,
    training: Training,
    *,
    objective: Objective | None = None,
    views: Views | None = None,
    seed: int = 0,
    device: str = "auto",
    checkpoints: Checkpoints | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> Fitted:
    """Train the model in place; it ends on the device, in eval mode, with the weights of its best epoch.

    Best is the better validation metric, and among equals the lower validation loss (the workload's own). The same
    arguments on the same machine and threads give the same weights, bit for bit on the CPU, also after an
    interruption: all randomness of an epoch comes from ``(seed, epoch)``, the learning rate from the step's number.
    With shards the threads do not matter either, nor the number of processes that share them; with an engine of torch
    the number of processes does. Each process calls this with the same arguments, and the first keeps the checkpoints;
    if torchrun started them, or whatever else sets RANK and WORLD_SIZE, they find each other here.

    Args:
        model: called with preprocessed inputs by name, answers [N, ...].
        data: what it learns from and is judged by.
        training: how; at least one epoch.
        objective: what training minimises; None = the workload's loss. One that is a module is trained along.
        views: fixed augmentations of the training split, taken in turn by epoch; None = fresh ones, if any.
        checkpoints: where the state is kept after each epoch; a training that finds its own goes on from it.
        progress: called with a fraction of the whole and a line of text.

    Raises:
        TrainingDiverged: the loss became NaN or infinite; names epoch and batch.
        WorkloadError: the model does not take what the workload gives it, or answers something else than [N, ...].
        SpecError: the device is not there; shards do not fit the batches or the processes, or the engine the model.
        StageOutOfMemory: the accelerator has no more memory; offers a smaller batch.
        RankLost, RanksDisagree: of the processes that share the training.
    """
    wanted = training.shards > 1 or training.engine is not None
    with by_environment(wanted=wanted, cpu=device == "cpu") as ranks:
        where = torch_device(device)
        with smaller_batch_offered(training.batch_size, where):
            trained = called_in_training(model, objective)
            return _fit(trained, data, training, objective, views, seed, (where, ranks), checkpoints, progress)


def _fit(
    model: nn.Module,
    data: TrainingData,
    training: Training,
    objective: Objective | None,
    views: Views | None,
    seed: int,
    place: tuple[torch.device, Ranks],
    checkpoints: Checkpoints | None,
    progress: Callable[[float, str], None] | None,
) -> Fitted:
    where, ranks = place
    model.to(where)
    loss = objective if objective is not None else Hard(data.workload.loss)
    beside = loss.to(where) if isinstance(loss, nn.Module) else nn.Module()
    epochs = training.epochs
    rows, judged = (Rows(data.workload, columns, where) for columns in (data.train, data.validation))
    sample = _check_fit(model, rows, loss)
    used = _used(rows.count, training.share, seed)
    steps = _steps(len(used), training.batch_size)
    engine = settled_engine(training.engine, model) if training.engine is not None and ranks.count > 1 else None
    if engine is not None:
        check_engine(engine, model, ranks=ranks, rows=len(used), steps=steps, amp=training.amp)
        if engine == "fsdp" and not (checkpoints is None or isinstance(checkpoints, PartedCheckpoints)):
            raise SpecError(f"engine fsdp: {type(checkpoints).__name__} has no save_part() and load_part(); add them")
    elif training.shards > 1 or ranks.count > 1:
        check_shards(training.shards, ranks, rows=len(used), steps=steps)
    with (
        reproducible(where, training.deterministic),
        worthwhile_threads(model, sample.inputs, training.batch_size, shards=training.shards),
        # FSDP takes contiguous weights only.
        channels_last(model, sample.inputs) if engine != "fsdp" else contextlib.nullcontext(),
        synced_batchnorm(model) if engine is not None else contextlib.nullcontext(),
    ):
        begun = _digest(model, beside) if ranks.count > 1 else ""
        split = _split(model, sample) if engine == "fsdp" else None
        loop = _Loop(model, rows, loss, _make_optimizer(model, beside, training), where, training.amp)
        if engine is not None:
            loop.shared = TorchEngine(model, beside, loop.optimizer, ranks=ranks, seed=seed)
        elif training.shards > 1:
            blocks = _blocks(model, objective, data) if training.pipelined and ranks.count > 1 else None
            if blocks is not None:
                loop.shared = _pipeline(loop, blocks, sample, shards=training.shards, seed=seed)
            else:
                both = (model, beside)
                loop.shared = MicroShards(both, loop.parameters, shards=training.shards, ranks=ranks, seed=seed)
        settings = (rows.count, views, training, seed)
        state = FitState(model, beside, loop.optimizer, loop.scaler, where=where, settings=settings)
        state.pipeline = loop.shared if isinstance(loop.shared, Gathering) else None
        resumed_at = state.resume(checkpoints)
        if ranks.count > 1:
            weights = begun if split is not None else _digest(model, beside)
            ranks.agree(_what_ranks_share(state, data, resumed_at, weights))
        for epoch in range(resumed_at + 1, epochs + 1):
            if state.finished:
                break
            began = time.monotonic()
            seed_everything(seed, epoch)
            if views is not None:
                rows.show(views.of_epoch(epoch))
            generator = torch.Generator().manual_seed(derive(seed, epoch))
            done = (epoch - 1) * steps

            def rate(step: int, done: int = done) -> float:
                return training.rate(done + step, epochs * steps)

            def tell(step: int, text: str, done: int = done, epoch: int = epoch) -> None:
                if progress is not None:
                    progress((done + step) / (epochs * steps), f"epoch {epoch}/{epochs}, {text}")

            batches = rows.lengths.batches(used, steps, generator)
            train_loss, lr = loop.epoch(epoch, batches, generator, rate, tell)
            val_loss, val_metric, better = judge(data.workload, *answers(model, judged))
            if not math.isfinite(val_loss):
                raise _diverged("validation", val_loss, epoch, steps, steps, lr)
            row = {"epoch": epoch, "train_loss": train_loss, "val_loss": val_loss, "val_metric": val_metric, "lr": lr}
            seconds = time.monotonic() - began
            state.record(row, better, seconds=seconds, epochs=epochs, patience=training.patience)
            if checkpoints is not None:
                state.save(checkpoints, epoch)
            text = f"loss {train_loss:.4f}, validation loss {val_loss:.4f}, metric {val_metric:.4f}"
            print(f"epoch {epoch}/{epochs}: {text}, lr {lr:.2e}", flush=True)
            tell(steps, text)
        if split is not None:
            loop.optimizer.state.clear()  # before the model is whole again: both at once may be too much
            split.join(state.best)
        else:
            model.load_state_dict(state.best)
    model.eval()
    return Fitted(
        history=state.history,
        best_epoch=state.best_epoch,
        val_metric=float(state.history[state.best_epoch - 1]["val_metric"]),
        val_loss=float(state.history[state.best_epoch - 1]["val_loss"]),
        stopped_early=len(state.history) < epochs,
        resumed_at=resumed_at,
        epoch_seconds=statistics.median(state.seconds) if state.seconds else None,
    )


class _Loop:
    """One epoch of steps: precision, optimizer and the watch over the loss."""

    def __init__(
        self,
        model: nn.Module,
        rows: Rows,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        where: torch.device,
        amp: Amp,
    ) -> None:
        self.model, self.rows, self.objective, self.optimizer, self.where = model, rows, objective, optimizer, where
        self.shared: Sharing | None = None
        """How processes or shards share a batch; None: it is one."""
        self.dtype = amp_dtype(amp, where)
        # Gradients of fp16 underflow without scaling; bf16 has float32's range.
        self.scaler = torch.amp.GradScaler(where.type, enabled=self.dtype is torch.float16)

    def epoch(
        self,
        epoch: int,
        batches: list[Tensor],
        generator: torch.Generator,
        rate: Callable[[int], float],
        tell: Callable[[int, str], None],
    ) -> tuple[float, float]:
        """Train on all batches; the mean loss per row and the last learning rate."""
        self.model.train()
        total = torch.zeros((), dtype=torch.float64, device=self.where)
        told, seen, lr = time.monotonic(), 0, 0.0
        look_every = 1 if self.where.type == "cpu" else _CHECK_EVERY
        for step, index in enumerate(batches):
            lr = rate(step)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            if self.shared is not None:
                loss = self.shared.gradients(epoch, step, index, self._loss, self.scaler.scale)
            else:
                loss = self._loss(index, generator)
                self.optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(self.scaler.scale(loss))
            self.scaler.step(self.optimizer)
            self.scaler.update()
            total += loss.detach().double() * len(index)
            seen += len(index)
            if step % look_every == 0 or step == len(batches) - 1:
                mean = float(total) / seen
                if not math.isfinite(mean):
                    raise _diverged("training", mean, epoch, step + 1, len(batches), lr)
                if time.monotonic() - told > 1.0:
                    told = time.monotonic()
                    tell(step + 1, f"loss {mean:.4f}")
        if self.shared is not None:
            self.shared.settle()
        return float(total) / seen, lr

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is trained, in the optimizer's order."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _loss(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """The objective of these rows [N] of the training split, a scalar."""
        batch = self.batch(index, generator)
        with self.computing():
            outputs = self.model(**batch.inputs)
        return self.loss_of(outputs, batch)

    def batch(self, index: Tensor, generator: torch.Generator) -> TrainingBatch:
        """These rows, augmented."""
        return self.rows(index, generator, cut=True)

    def computing(self) -> torch.autocast:
        """What forward passes run in."""
        return torch.autocast(self.where.type, dtype=self.dtype, enabled=self.dtype is not None)

    def loss_of(self, outputs: Tensor, batch: TrainingBatch) -> Tensor:
        """The objective of answers to a batch, a scalar."""
        return self.objective(outputs.float() if self.dtype is not None else outputs, batch)


def _blocks(
    model: nn.Module, objective: Objective | None, data: TrainingData
) -> Sequence[Callable[..., Tensor]] | None:
    """The model's blocks, where it can be trained by them; the same bits come of it either way."""
    if isinstance(objective, nn.Module) or getattr(objective, "around", None) is not None:
        print(
            "engine pipeline: what is learned needs more than the model's answers, so shards are shared out", flush=True
        )
        return None
    blocks, kind = blocks_of(data.workload, model), type(model).__name__
    if blocks is None:
        print(f"engine pipeline: {kind} names no blocks, so shards are shared out", flush=True)
    elif len(blocks) < Ranks.current().count:
        named = f"{kind} names {len(blocks)} blocks for {Ranks.current().count} processes"
        print(f"engine pipeline: {named}, so shards are shared out", flush=True)
        return None
    return blocks


def _pipeline(
    loop: _Loop, blocks: Sequence[Callable[..., Tensor]], sample: TrainingBatch, *, shards: int, seed: int
) -> PipelinedShards:
    """Imported only here, for it brings torch's counter of multiplications."""
    if loop.dtype is torch.float16:
        raise SpecError("engine pipeline with amp fp16: its gradients are scaled on each process apart; use amp: bf16")
    module = importlib.import_module("tasks.torch_models.pipelined_shards")
    made: PipelinedShards = module.PipelinedShards(
        loop.model,
        blocks,
        sample.inputs,
        batch_of=loop.batch,
        loss_of=loop.loss_of,
        computing=loop.computing,
        shards=shards,
        seed=seed,
    )
    return made


def _split(model: nn.Module, sample: TrainingBatch) -> SplitModel:
    """Imported only here: it takes seconds."""
    module = importlib.import_module("tasks.torch_models.split_model")
    split: SplitModel = module.SplitModel(model, sample.inputs)
    return split


def _digest(*modules: nn.Module) -> str:
    """Of all weights and buffers, tensor by tensor: a copy of all would take more memory than a split training."""
    found = [
        (name, str(value.dtype), hash_bytes(_bytes(value)))
        for module in modules
        for name, value in module.state_dict().items()
    ]
    return hash_bytes(repr(found).encode())


def _bytes(value: Tensor) -> memoryview:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _what_ranks_share(state: FitState, data: TrainingData, resumed_at: int, weights: str) -> dict[str, str]:
    """What must be the same on every rank before they train together: of the data the first and last rows."""
    edges = [
        (name, values.shape, str(values.dtype), hash_bytes(np.ascontiguousarray(part).tobytes()))
        for split in (data.train, data.validation)
        for name, values in split.items()
        for part in (values[:64], values[-64:])
    ]
    ref = data.workload.ref
    return {
        "the training's settings": state.fingerprint,
        "the epoch they go on from": str(resumed_at),
        "the data": repr(edges),
        "the weights they begin with": weights,
        "Winnow's code": closure_hash(__name__),
        "the workload's code": closure_hash(ref.path.partition(":")[0], ref.folder),
    }


def _used(rows: int, share: float, seed: int) -> Tensor:
    """Numbers of the rows that are trained on."""
    if share >= 1:
        return torch.arange(rows)
    drawn = torch.randperm(rows, generator=torch.Generator().manual_seed(derive(seed, 0)))
    return drawn[: max(2, round(share * rows))]


def _steps(rows: int, batch_size: int) -> int:
    """Batches of an epoch, none of a single row: BatchNorm cannot train on that."""
    return max(1, min(math.ceil(rows / batch_size), rows // 2))


def _make_optimizer(model: nn.Module, beside: nn.Module, training: Training) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise WorkloadError(f"{type(model).__name__} has no parameters that can be trained")
    parameters += beside.parameters()
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = all(p.is_floating_point() for p in parameters)
    if training.optimizer == "sgd":
        fused = fused and not any(map(is_split, parameters))  # torch 2.13 has it for AdamW alone
        return torch.optim.SGD(groups, lr=training.learning_rate, momentum=0.9, nesterov=True, fused=fused)
    return torch.optim.AdamW(groups, lr=training.learning_rate, fused=fused)


def _check_fit(model: nn.Module, rows: Rows, objective: Objective) -> TrainingBatch:
    """Ask the model about two rows before training, and judge it, so that a misfit is reported as one; those rows."""
    if rows.count < 2:
        raise WorkloadError(f"the training split has {rows.count} row(s); training needs at least 2")
    model.eval()
    batch = rows(torch.arange(2), None)
    with torch.no_grad():
        outputs = call_model(model, batch.inputs)
        try:
            loss = objective(outputs, batch)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise WorkloadError(
                f"the loss does not take outputs {describe_tensor(outputs)} and targets "
                f"{describe_tensor(batch.targets)}: {error}; make the model's last layer fit the targets, or write "
                "a loss"
            ) from error
    if loss.ndim != 0:
        raise WorkloadError(f"the loss has shape {list(loss.shape)}; it must be a scalar: average it")
    rows.workload.scores(outputs.float().cpu().numpy(), batch.targets.cpu().numpy())
    return batch


def _diverged(which: str, value: float, epoch: int, step: int, steps: int, lr: float) -> TrainingDiverged:
    details: dict[str, Any] = {"epoch": epoch, "batch": step}
    return TrainingDiverged(
        f"the {which} loss became {value} in epoch {epoch}, at or before batch {step} of {steps}, learning rate "
        f"{lr:.3g}: lower learning_rate, lengthen warmup, or look for NaN and extreme values in the data",
        **details,
    )
