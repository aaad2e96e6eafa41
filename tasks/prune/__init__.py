"""Prune: whole channels and units (or single weights) go, and what is left is fine-tuned with the teacher's help."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from model_registry.variant import Frozen, Variant
from tasks.running.policy import step
from tasks.running.splits import DataRef
from tasks.running.stage import Job, Outcome, Stage
from tasks.running.stage_cache import run_stage


class PruneSpec(Frozen):
    """Pruning with fine-tuning."""

    kind: Literal["structured", "unstructured", "2:4"] = Field(
        default="structured",
        description="what goes: whole channels and units; or single weights, anywhere or two of each four inputs "
        "(2:4, whatever the ratio), which become zeros: smaller once compressed, faster in no runtime served here",
    )
    ratio: float = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="share of channels and units removed, the output layer left alone; of the weights, if sparse",
    )
    ratios: dict[str, Annotated[float, Field(ge=0, lt=1)]] | None = Field(
        default=None,
        description="another share by layer name, such as {conv1: 0.25, dense: 0}, for the layer and those tied to it; "
        "the allocate step answers such a table",
    )
    importance: Literal["magnitude", "taylor", "hessian", "bn_scale", "lamp"] = Field(
        default="magnitude",
        description="what ranks channels: the weights' magnitude, the loss's first-order change (taylor; of little use "
        "where the training loss is almost 0) or second-order one (hessian: a backward pass for each of up to 512 "
        "rows), BatchNorm's weights, or magnitude relative to the layer (lamp)",
    )
    scope: Literal["local", "global", "isomorphic"] = Field(
        default="local",
        description="the ratio holds for every layer (local), or over all of them, ranked together (global) or among "
        "layers of the same shape (isomorphic)",
    )
    steps: int = Field(
        default=1,
        ge=1,
        le=50,
        description="pruned in so many equal steps, with fine-tuning after each; the learning rate is rewound to its "
        "peak for each (the weights are not)",
    )
    round_to: int | None = Field(
        default=None, ge=1, description="channels kept are a multiple of this; null: as the workload hints, else 1"
    )
    ignore: tuple[str, ...] = Field(
        default=(), description="names of modules that keep their width, besides those the workload hints at"
    )
    epochs: int = Field(
        default=30,
        ge=0,
        description="fine-tuning epochs in all, shared by the steps; 0: none, to cost a structure before training",
    )
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
        default=20, ge=1, description="training batches over which taylor or hessian adds up its gradients"
    )

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if self.kind == "structured":
            return self
        wrong = []
        if self.importance in ("bn_scale", "lamp"):
            wrong.append(f"importance {self.importance} ranks channels: use magnitude, taylor or hessian")
        if self.scope == "isomorphic":
            wrong.append("scope isomorphic compares channels: use local or global")
        if self.round_to is not None:
            wrong.append("round_to is of channels: leave it away")
        if self.kind == "2:4" and (self.steps > 1 or self.ratios is not None):
            wrong.append("its share is always a half: leave steps and ratios away")
        if wrong:
            raise ValueError(f"prune.kind {self.kind}: {'; '.join(wrong)}")
        return self


STAGE = Stage(
    name="prune",
    pool="torch",
    entry="tasks.prune.prune_child:main",
    libraries=("torch", "torch-pruning"),
    yields=("pruned",),
)


@step(STAGE)
def prune(job: Job, spec: PruneSpec, *, data: DataRef, parent: Variant, teacher: Variant, label: str = "") -> Outcome:
    """Make the torch variant ``pruned`` of the parent; ``pruned.history.jsonl`` holds the curves of fine-tuning.

    Args:
        label: names the variant, its history and the stage, where one run prunes several times.

    Values: ``variants`` by digest (``name``, ``parameters``, ``macs``), the same under ``before``; ``layers`` (name to
    channels before and after), ``validation`` (the metric of the ``parent``, after pruning, and ``tuned``),
    ``batchnorm_layers``, ``untraced`` layers that the dependency graph did not reach; of a sparse kind ``sparsity``
    (``weights``, ``zeros``, ``by_layer``, ``deflated_bytes``) and ``runtime_gain``.

    Raises:
        PruningRefused: the model cannot be traced, a layer named is not there or would be left without channels.
        TrainingDiverged: the loss became NaN or infinite.
    """
    name = label or "pruned"
    stage = replace(STAGE, yields=(name,))
    inputs = {"parent": parent, "teacher": teacher}
    return run_stage(stage, job, spec, data=data, inputs=inputs, extra={"name": name}, label=label)
