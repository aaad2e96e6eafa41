"""Rival: what needs no network, trained on the same rows, so that a reader sees what a network is worth there."""

from __future__ import annotations

from pydantic import Field

from model_registry.variant import Frozen
from tasks.running.policy import step
from tasks.running.splits import DataRef
from tasks.running.stage import Job, Outcome, Stage
from tasks.running.stage_cache import run_stage


class RivalSpec(Frozen):
    """Gradient-boosted trees of scikit-learn, trained on the same rows; of texts a bag of words. The report says how
    they do; nothing else does anything with them."""

    rounds: int = Field(default=200, ge=1, description="most rounds of boosting; they stop when they no longer help")
    learning_rate: float = Field(default=0.1, gt=0, description="share of each round's correction that is taken")


STAGE = Stage(name="rival", pool="torch", entry="tasks.rival.rival_child:main", libraries=("scikit-learn",))


@step(STAGE)
def rival(job: Job, spec: RivalSpec, *, data: DataRef) -> Outcome:
    """Train the trees, or the bag of words, and ask them about the test split.

    Values: ``metric``, ``value``, ``seconds`` of training, ``rounds``, ``bytes`` of nodes or weights, ``row_ms`` for a
    row alone, ``text``, all of it as a sentence; or ``refused``, why such data are not for trees.
    """
    return run_stage(STAGE, job, spec, data=data, inputs={})
