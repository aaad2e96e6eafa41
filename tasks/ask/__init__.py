"""Ask: what the teachers say about the data, computed before anybody learns from it."""

from __future__ import annotations

from pydantic import Field

from model_registry.variant import Frozen, Variant
from tasks.running.policy import step
from tasks.running.splits import DataRef
from tasks.running.stage import Job, Outcome, Stage
from tasks.running.stage_cache import run_stage


class AskSpec(Frozen):
    """What the teachers are asked about."""

    views: int | None = Field(
        default=None,
        ge=1,
        description="augmented versions of the training split (see distill.views), besides the validation split",
    )
    validation: bool = Field(default=True, description="also the validation split, by which a teacher is judged")


STAGE = Stage(name="ask", pool="torch", entry="tasks.ask.ask_child:main", libraries=("torch",))


@step(STAGE)
def ask(job: Job, spec: AskSpec, *, data: DataRef, teachers: tuple[Variant, ...]) -> Outcome:
    """Keep the teachers' answers in the store, where every training finds them.

    A training asks by itself where they are missing; asked beforehand, their cost is not taken for that of the first
    training, by which a search judges what it still has time for. With fresh augmentation the training split is not
    asked about: the answers would be to other questions.

    Values: ``answers``, how many rows were answered in all, by each teacher.
    """
    inputs = {f"teacher{number}": teacher for number, teacher in enumerate(teachers, 1)}
    return run_stage(STAGE, job, spec, data=data, inputs=inputs)
