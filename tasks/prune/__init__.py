"""Prune: whole channels and units go, and what is left is fine-tuned with the teacher's help."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from model_registry.variant import Frozen, Variant
from tasks.running.policy import step
from tasks.running.splits import DataRef
from tasks.running.stage import Job, Outcome, Stage
from tasks.running.stage_cache import run_stage


class PruneSpec(Frozen):
    """Pruning with fine-tuning."""

    ratio: float = Field(
        default=0.5, gt=0, lt=1, description="share of channels and units to remove; the output layer keeps its width"
    )
    ratios: dict[str, Annotated[float, Field(ge=0, lt=1)]] | None = Field(
        default=None,
        description="another ratio by layer name, such as {conv1: 0.25, dense: 0}, for the layer and those that must "
        "have its width",
    )
    importance: Literal["magnitude", "taylor", "hessian"] = Field(
        default="magnitude",
        description="what ranks channels. magnitude: their weights. taylor: first-order change of the loss, of little "
        "use where the training loss is almost 0. hessian: second-order change, with a backward pass for each of up "
        "to 512 rows",
    )
    scope: Literal["local", "global"] = Field(
        default="local",
        description="where the ratio holds. local: in every layer. global: over all layers, ranked together",
    )
    steps: int = Field(
        default=1,
        ge=1,
        le=50,
        description="number of equal steps in which to prune, with fine-tuning after each; the learning rate starts "
        "at its highest value again in each step",
    )
    round_to: int | None = Field(
        default=None,
        ge=1,
        description="keep a multiple of this number of channels; null: as the workload's prune_hints() say, else 1",
    )
    ignore: tuple[str, ...] = Field(
        default=(), description="names of modules that keep their width, besides those in the workload's prune_hints()"
    )
    epochs: int = Field(
        default=30,
        ge=0,
        description="total number of fine-tuning epochs, shared by the steps; 0: none, to cost a structure before "
        "training it",
    )
    batch_size: int = Field(default=64, ge=2, description="number of rows per fine-tuning step")
    learning_rate: float = Field(default=2e-3, gt=0, description="highest learning rate of the fine-tuning")
    weight_decay: float = Field(default=0.01, ge=0, description="decay of the weights; biases and norms have none")
    patience: int | None = Field(
        default=10,
        ge=1,
        description="end a step's fine-tuning after this number of epochs without a better one; null: never",
    )
    temperature: float = Field(
        default=4.0, gt=0, description="how much the teacher's probabilities are softened; only for classifiers"
    )
    alpha: float = Field(
        default=0.7,
        ge=0,
        le=1,
        description="share of the teacher's answers in the fine-tuning loss; the rest is the targets'",
    )
    batchnorm_batches: int = Field(
        default=100, ge=1, description="number of training batches over which BatchNorm's statistics are measured again"
    )
    gradient_batches: int = Field(
        default=20, ge=1, description="number of training batches over which taylor and hessian add up gradients"
    )

    @model_validator(mode="before")
    @classmethod
    def _one_kind(cls, document: Any) -> Any:
        """Older specs may name the ``kind``: the one that is left still loads."""
        if not isinstance(document, dict) or "kind" not in document:
            return document
        if document["kind"] != "structured":
            raise ValueError(
                f"kind {document['kind']!r} was removed: zeros among the weights make no runtime served here faster; "
                "remove kind (whole channels go, by ratio), and add quantize for a smaller file"
            )
        return {key: value for key, value in document.items() if key != "kind"}

    @field_validator("importance", "scope", mode="before")
    @classmethod
    def _not_removed(cls, value: Any) -> Any:
        instead = {"bn_scale": "magnitude", "lamp": "magnitude", "isomorphic": "global"}
        if isinstance(value, str) and value in instead:
            raise ValueError(
                f"{value} was removed: no measurement showed it to keep more accuracy; use {instead[value]}"
            )
        return value


STAGE = Stage(
    name="prune",
    trains=True,
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
    channels before and after), ``validation`` (the metric of the ``parent``, after pruning, and ``tuned``; empty with 0
    epochs), ``batchnorm_layers``, ``untraced`` layers that the dependency graph did not reach, those ``left_alone``
    and why, and with 0 epochs ``row_seconds``, which a row of a training step would take, and ``larger``
    (``batch_size``, ``row_seconds``): the same with as large a batch as hardly lengthens a step.

    Raises:
        PruningRefused: the model cannot be traced, a layer named is not there or would be left without channels.
        TrainingDiverged: the loss became NaN or infinite.
    """
    name = label or "pruned"
    stage = replace(STAGE, yields=(name,))
    inputs = {"parent": parent, "teacher": teacher}
    return run_stage(stage, job, spec, data=data, inputs=inputs, extra={"name": name}, label=label)
