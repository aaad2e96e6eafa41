"""Distillation: a student learns from the teacher's answers, and its control learns without them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from model_registry.variant import Frozen, Variant
from tasks.policy import step
from tasks.splits import DataRef
from tasks.stage import Job, Outcome, Stage
from tasks.stage_cache import run_stage


class DistillSpec(Frozen):
    """A smaller student, taught by the teacher."""

    scale: dict[str, Any] = Field(
        default_factory=lambda: {"width": 0.5},
        description="arguments of the workload's model() for the student, such as {width: 0.5}",
    )
    temperature: float = Field(
        default=2.0, gt=0, description="softens the teacher's probabilities; 1: as they are (classifiers only)"
    )
    alpha: float = Field(
        default=0.5, ge=0, le=1, description="share of the teacher's answers in the loss; 1: no targets"
    )
    epochs: int = Field(default=40, ge=1, description="passes over the training split, for student and control each")
    batch_size: int = Field(default=64, ge=2, description="rows per step")
    learning_rate: float = Field(default=4e-3, gt=0, description="peak of the learning rate")
    weight_decay: float = Field(default=0.01, ge=0, description="decay of weights, not of biases and norms")
    optimizer: Literal["adamw", "sgd"] = Field(default="adamw", description="adamw, or sgd with momentum 0.9")
    schedule: Literal["cosine", "constant"] = Field(
        default="cosine", description="course of the learning rate after warm-up: cosine to 0, or constant"
    )
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of all steps in which the rate rises linearly")
    patience: int | None = Field(
        default=None,
        ge=1,
        description="stop after so many epochs without a better one; null: never, so that the control gets as many",
    )
    amp: Literal["auto", "off", "bf16", "fp16"] = Field(
        default="auto", description="mixed precision; auto: bf16 or fp16 on CUDA, off elsewhere"
    )
    deterministic: bool = Field(default=True, description="refuse operations whose result varies between runs")


STAGE = Stage(
    name="distill",
    pool="torch",
    entry="tasks.distill.distill_child:main",
    libraries=("torch",),
    yields=("student", "control"),
)


@step(STAGE)
def distill(job: Job, spec: DistillSpec, *, data: DataRef, teacher: Variant) -> Outcome:
    """Train the variants ``student`` and ``control``: same model, seed and budget, with and without the teacher.

    The files ``student.history.jsonl`` and ``control.history.jsonl`` hold their curves. Values: ``student`` and
    ``control`` (each ``parameters``, ``epochs``, ``best_epoch``, ``val_metric``, ``val_loss``), ``teacher``
    (``val_metric``), ``metric`` (its name), and ``gain``: the student's metric over the control's on validation,
    turned so that more is better, with ``gain_interval`` (95 %, paired) and ``gain_p``.

    Raises:
        TrainingDiverged: the loss became NaN or infinite.
        WorkloadError: the workload's model() does not take the scale.
    """
    return run_stage(STAGE, job, spec, data=data, inputs={"teacher": teacher})
