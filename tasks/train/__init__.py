"""The teacher: trained here, or brought."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from model_registry.manifest import FileEntry
from model_registry.store import BucketMissing, ObjectMissing, Store
from model_registry.variant import Frozen
from tasks.running.errors import WeightsMismatch
from tasks.running.policy import step
from tasks.running.process_guard import run_folder
from tasks.running.splits import DataRef
from tasks.running.stage import Job, Outcome, Stage
from tasks.running.stage_cache import run_stage


class TrainSpec(Frozen):
    """Training of the teacher."""

    epochs: int = Field(default=30, ge=1, description="maximum number of passes over the training split")
    batch_size: int = Field(default=64, ge=2, description="number of rows per step")
    learning_rate: float = Field(default=2e-3, gt=0, description="highest learning rate, reached after the warm-up")
    weight_decay: float = Field(default=0.01, ge=0, description="decay of the weights; biases and norms have none")
    optimizer: Literal["adamw", "sgd"] = Field(default="adamw", description="adamw, or sgd with momentum 0.9")
    schedule: Literal["cosine", "constant"] = Field(
        default="cosine",
        description="how the learning rate falls after the warm-up: along a cosine to 0, or not at all",
    )
    warmup: float = Field(
        default=0.05, ge=0, lt=1, description="share of all steps in which the learning rate rises linearly"
    )
    patience: int | None = Field(
        default=10, ge=1, description="stop after this number of epochs without a better one; null: never"
    )
    amp: Literal["auto", "off", "bf16", "fp16"] = Field(
        default="auto",
        description="mixed precision on CUDA; auto: bf16, or fp16 where the GPU lacks it; a CPU trains in float32",
    )
    deterministic: bool = Field(default=True, description="refuse operations whose result differs from run to run")
    scale: dict[str, Any] = Field(
        default_factory=dict, description="arguments of the workload's model() for the teacher, such as {width: 2.0}"
    )


class BringSpec(Frozen):
    """Trained weights to bring instead of training."""

    weights: str | None = Field(
        default=None,
        min_length=1,
        description="file of the weights, a path or s3://: safetensors, a state_dict saved by torch, or an ONNX file "
        "(which is only measured and quantized); absent: those that the workload's model() has already, as of sentence "
        "vectors",
    )
    scale: dict[str, Any] = Field(
        default_factory=dict, description="arguments of the workload's model() with which it fits the weights"
    )

    @property
    def is_onnx(self) -> bool:
        """Whether the file is ONNX, by its name."""
        return self.weights is not None and self.weights.endswith(".onnx")

    @field_validator("weights")
    @classmethod
    def _a_place(cls, weights: str | None) -> str | None:
        scheme = re.match(r"([a-z0-9+]+)://", weights or "")
        if scheme and scheme[1] != "s3":
            raise ValueError(f"weights {weights!r} must be a path or s3://bucket/key; download {scheme[1]}:// first")
        return weights


TRAIN = Stage(
    name="train",
    trains=True,
    pool="torch",
    entry="tasks.train.train_child:main",
    libraries=("torch",),
    yields=("teacher",),
)
BRING = Stage(
    name="bring",
    pool="torch",
    entry="tasks.train.bring_child:main",
    libraries=("torch",),
    seed_matters=False,
    looks=True,
    device_matters=False,
    yields=("teacher",),
)


@step(TRAIN)
def train(job: Job, spec: TrainSpec, *, data: DataRef, label: str = "") -> Outcome:
    """Train the variant ``teacher``; the file ``teacher.history.jsonl`` holds its curves.

    Args:
        label: names the stage, where several teachers are trained.

    Values: ``parameters``, ``epochs`` done, ``best_epoch``, ``val_metric``, ``val_loss``, ``first_val_loss`` (after one
    epoch), ``stopped_early``.

    Raises:
        TrainingDiverged: the loss became NaN or infinite.
        WorkloadError: the model does not fit the data.
    """
    return run_stage(TRAIN, job, spec, data=data, label=label)


@step(BRING)
def bring(job: Job, spec: BringSpec, *, data: DataRef) -> Outcome:
    """Take trained weights as the variant ``teacher``: a torch variant, or an ONNX one if the file is ONNX.

    Values: ``parameters``; ``task``, see :func:`tasks.rehearse.settled_data`; for weights also ``val_metric`` and
    ``val_loss``.

    Raises:
        WeightsMismatch: the file is not there, is no file of weights, or does not fit the model.
    """
    extra = {"file": _into_the_store(job, spec.weights).model_dump()} if spec.weights is not None else {}
    return run_stage(BRING, job, spec, data=data, extra=extra)


def _into_the_store(job: Job, weights: str) -> FileEntry:
    """The file as a blob: the cache key has its hash, and the child reads it wherever it runs."""
    store = Store(job.store)
    with run_folder() as folder:
        copy = folder / "weights"
        if weights.startswith("s3://"):
            try:
                store.download(weights, copy)
            except (ObjectMissing, BucketMissing) as error:
                raise WeightsMismatch(f"weights {weights!r}: there is no such object: {error}") from error
        else:
            path = Path(job.workload.folder or ".") / weights
            if not path.is_file():
                raise WeightsMismatch(
                    f"weights {weights!r}: there is no file {path}; relative paths start at the spec's folder"
                )
            shutil.copyfile(path, copy)
        (entry,) = store.publish_folder(folder)
    return entry
