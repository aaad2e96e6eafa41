"""Prune: whole channels and units are removed, and what is left is fine-tuned with the teacher's help."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from model_registry.variant import Frozen, Variant
from tasks.policy import step
from tasks.splits import DataRef
from tasks.stage import Job, Outcome, Stage
from tasks.stage_cache import run_stage


class PruneSpec(Frozen):
    """Structured pruning with fine-tuning."""

    ratio: float = Field(
        default=0.5, gt=0, lt=1, description="share of channels and units removed; the output layer is left alone"
    )
    importance: Literal["magnitude", "taylor", "bn_scale", "lamp"] = Field(
        default="magnitude",
        description="what ranks channels: the weights' magnitude, the loss's first-order change (taylor; of little use "
        "where the training loss is almost 0), BatchNorm's weights, or magnitude relative to the layer (lamp)",
    )
    scope: Literal["local", "global", "isomorphic"] = Field(
        default="local",
        description="the ratio holds for every layer (local), or over all of them, ranked together (global) or among "
        "layers of the same shape (isomorphic)",
    )
    steps: int = Field(default=1, ge=1, le=50, description="pruned in so many equal steps, with fine-tuning after each")
    round_to: int | None = Field(
        default=None, ge=1, description="channels kept are a multiple of this; null: as the workload hints, else 1"
    )
    ignore: tuple[str, ...] = Field(
        default=(), description="names of modules that keep their width, besides those the workload hints at"
    )
    epochs: int = Field(default=30, ge=1, description="fine-tuning epochs in all, shared by the steps")
    batch_size: int = Field(default=64, ge=2, description="rows per fine-tuning step")
    learning_rate: float = Field(default=2e-3, gt=0, description="peak of the fine-tuning learning rate")
    weight_decay: float = Field(default=0.01, ge=0, description="decay of weights, not of biases and norms")
    patience: int | None = Field(
        default=10, ge=1, description="end a step's fine-tuning after so many epochs without a better one; null: never"
    )
    temperature: float = Field(default=4.0, gt=0, description="softness of the teacher's answers; classifiers only")
    alpha: float = Field(
        default=0.7, ge=0, le=1, description="weight of the teacher's answers; the rest is the targets'"
    )
    batchnorm_batches: int = Field(
        default=100, ge=1, description="training batches over which BatchNorm's statistics are measured again"
    )
    gradient_batches: int = Field(
        default=20, ge=1, description="training batches over which taylor adds up its gradients"
    )


STAGE = Stage(
    name="prune",
    pool="torch",
    entry="tasks.prune.prune_child:main",
    libraries=("torch", "torch-pruning"),
    yields=("pruned",),
)


@step(STAGE)
def prune(job: Job, spec: PruneSpec, *, data: DataRef, parent: Variant, teacher: Variant) -> Outcome:
    """Make the torch variant ``pruned`` of the parent; ``pruned.history.jsonl`` holds the curves of fine-tuning.

    Values: ``variants`` by digest (``name``, ``parameters``, ``macs``), the same under ``before``; ``layers`` (name to
    channels before and after), ``validation`` (the metric of the ``parent``, after pruning, and ``tuned``),
    ``batchnorm_layers``, ``untraced`` layers that the dependency graph did not reach.

    Raises:
        PruningRefused: the model cannot be traced, or a layer would be left without channels.
        TrainingDiverged: the loss became NaN or infinite.
    """
    return run_stage(STAGE, job, spec, data=data, inputs={"parent": parent, "teacher": teacher})
