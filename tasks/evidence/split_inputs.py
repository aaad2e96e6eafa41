"""The splits as the model's raw inputs: what the workload's ``batch`` makes of the columns, stored as arrays.

A custom ``batch`` is torch code of the user's. It runs once here, so that everything that measures needs no torch.
"""

from __future__ import annotations

from pydantic import BaseModel

from model_registry.manifest import FileEntry
from tasks.running.splits import DataRef
from tasks.running.stage import Job, Stage
from tasks.running.stage_cache import run_stage

STAGE = Stage(
    name="inputs",
    pool="torch",
    entry="tasks.evidence.split_inputs_child:main",
    libraries=("torch", "numpy"),
    seed_matters=False,
    device_matters=False,
)


class NoSpec(BaseModel):
    """This stage has nothing to set."""


def split_inputs(job: Job, data: DataRef) -> dict[str, FileEntry]:
    """npz files of validation and test: an array per model input, and ``target``. Empty while only planned."""
    outcome = run_stage(STAGE, job, NoSpec(), data=data)
    return {entry.path.removesuffix(".npz"): entry for entry in outcome.files}
