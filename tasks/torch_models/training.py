"""How a model is trained, whatever it learns: one value from a stage's spec to the loop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from tasks.running.stage import Job
from tasks.torch_models.fit_amp import Amp

Optimizer = Literal["adamw", "sgd"]
Schedule = Literal["cosine", "constant"]
Engine = Literal["auto", "ddp", "fsdp"]


@dataclass(frozen=True)
class Training:
    """Length, steps and precision of a training.

    Args:
        epochs: maximum number of passes over the training split.
        batch_size: rows per step; the batches of an epoch are evened out, so that none is tiny.
        learning_rate: its peak, after a linear rise over ``warmup`` (a share of all steps).
        weight_decay: on matrices and kernels only, not on biases and norms.
        optimizer: AdamW, or SGD with Nesterov's momentum of 0.9.
        schedule: course of the learning rate after its rise, see :meth:`rate`.
        warmup: share of all steps in which the learning rate rises.
        share: of the training rows, the same ones in every epoch, for a quick look.
        patience: stop after this number of epochs in a row without a better one; None = never.
        amp: mixed precision; see tasks/torch_models/fit_amp.py. Validation is always float32.
        deterministic: refuse operations whose result varies from run to run.
        shards: of each batch, a power of two; see tasks/torch_models/micro_shards.py. 1: the batch is one.
        engine: what of torch adds gradients up where processes share a batch without shards; the result depends on
            their number then. See tasks/torch_models/torch_engine.py.
        pipelined: whether shards pass through the processes, each of which has some of the model's blocks; the result
            is the same, so it is no part of what a training is. See tasks/torch_models/pipelined_shards.py.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.01
    optimizer: Optimizer = "adamw"
    schedule: Schedule = "cosine"
    warmup: float = 0.05
    share: float = 1.0
    patience: int | None = None
    amp: Amp = "auto"
    deterministic: bool = True
    shards: int = 1
    engine: Engine | None = None
    pipelined: bool = field(default=False, repr=False)

    @classmethod
    def of(cls, spec: Mapping[str, Any], job: Job | None = None) -> Training:
        """What a stage's spec says about training; what it does not say has the defaults above.

        Args:
            job: what the run says about all its trainings.
        """
        names = {field.name for field in fields(cls)}
        said = {name: value for name, value in spec.items() if name in names}
        if job is not None:
            said |= {"shards": job.shards, "engine": job.engine, "pipelined": job.pipelined}
        return cls(**said)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step (from 0); ``steps`` is their number.

        A linear rise, then constant or a cosine to 0: Loshchilov and Hutter 2017, "SGDR", without restarts.
        """
        return self.learning_rate * self._share(step, steps)

    def _share(self, step: int, steps: int) -> float:
        rise = max(1, round(steps * self.warmup)) if self.warmup > 0 else 0
        if step < rise:
            return (step + 1) / rise
        if self.schedule == "constant":
            return 1.0
        return 0.5 * (1.0 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
