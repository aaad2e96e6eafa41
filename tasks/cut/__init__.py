"""Cut: the teacher at a fraction of its resolution or without some of its blocks, every other weight as it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, Self

from pydantic import Field, model_validator

from model_registry.variant import Frozen, Variant
from tasks.running.policy import step
from tasks.running.splits import DataRef
from tasks.running.stage import Job, Outcome, Stage
from tasks.running.stage_cache import run_stage


class CutSpec(Frozen):
    """What is cut; nothing is trained."""

    stride: Literal[1, 2, 4] = Field(
        default=1,
        description="number of times fewer pixels (or steps of a sequence) along each axis that all layers but the "
        "first convolution see",
    )
    depth: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="share of the blocks that can be left out that stay; the first of each stage always does",
    )
    batch_size: int = Field(default=64, ge=2, description="number of rows in a batch for BatchNorm's statistics")
    batchnorm_batches: int = Field(
        default=100, ge=1, description="number of training batches over which BatchNorm's statistics are measured again"
    )

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.stride == 1 and self.depth == 1:
            raise ValueError("stride 1 with depth 1 cuts nothing; set stride to 2 or 4, or depth below 1")
        return self


STAGE = Stage(name="cut", pool="torch", entry="tasks.cut.cut_child:main", libraries=("torch",), yields=("cut",))


@step(STAGE)
def cut(job: Job, spec: CutSpec, *, data: DataRef, parent: Variant, label: str = "") -> Outcome:
    """Make the torch variant ``cut`` of the parent, which was not pruned yet. It can be pruned, trained and exported.

    Args:
        label: names the variant and the stage, where one run cuts several times.

    Values: ``variants`` by digest (``name``, ``parameters``, ``macs``), the same under ``before``; ``layer``, the
    convolution that sees to the stride (null: none); ``blocks``, the names of those that were left out;
    ``batchnorm_layers``; ``row_seconds``, which a row of a training step would take, and ``larger``
    (``batch_size``, ``row_seconds``): the same with as large a batch as hardly lengthens a step.

    Raises:
        CutRefused: no layer can step further, the answer would have another shape, there is no block to leave out, or
            the parent was pruned.
    """
    name = label or "cut"
    stage = replace(STAGE, yields=(name,))
    return run_stage(stage, job, spec, data=data, inputs={"parent": parent}, extra={"name": name}, label=label)
