"""What a stage is, what it is asked to do, and what it answers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from model_registry.manifest import FileEntry
from model_registry.variant import Frozen, ModelName, Record, Variant
from tasks.running.errors import SpecError
from tasks.running.task_kind import TaskKind

_RUN_ID = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$"


Place = Literal["local", "ray"]
"""Of processes: this machine, or the nodes of a Ray cluster."""


class WorkloadRef(Frozen):
    """Where the user's class is: an importable ``module:Class``, its arguments, and the folder of the spec."""

    path: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    arguments: dict[str, Any] = Field(default_factory=dict)
    task: TaskKind | None = Field(
        default=None,
        description="what is learned, where targets and answers do not say it: binary (one logit), classes, labels "
        "(several per sample), regression, places (a class for each pixel or step), or other (only the workload's own "
        "loss and metric know); absent: inferred before training, and shown by --plan",
    )
    folder: str | None = None
    """Searched last for the module, and the base of relative paths. Not part of any identity."""


class Limits(Frozen):
    """What a stage's process may use before it is ended."""

    seconds: float = Field(default=3600.0, gt=0, description="longest time that the stage may take, in seconds")
    memory_bytes: int = Field(
        default=16 << 30, gt=0, description="largest resident memory of the stage's processes, in bytes"
    )


class Parallel(Frozen):
    """One training shared out among processes."""

    shards: int = Field(
        default=8,
        ge=1,
        le=1024,
        description="number of parts, a power of two from 2 on, that each batch of a training is cut into; each has "
        "its own gradient and BatchNorm statistics, and they are summed in one fixed order, so that the result does "
        "not depend on the number of processes (nor on threads: each has one). Not with exact: false, where it is 1",
    )
    processes: int | Literal["auto"] = Field(
        default="auto",
        description="number of processes that share the parts, a power of two; auto: one for each core, or fewer. No "
        "part of a result's identity: what was trained by two is found again by four. With exact: false any number, "
        "which is part of the result's identity",
    )
    exact: bool = Field(
        default=True,
        description="true: the result's bits do not depend on the number of processes. false: gradients are added up "
        "by torch, faster with many processes, and a result is that of its number of processes, equal to others but "
        "for rounding and randomness",
    )
    engine: Literal["ddp", "fsdp", "pipeline"] | None = Field(
        default=None,
        description="with exact: false, what of torch trains: ddp (each process has the whole model) or fsdp (each has "
        "its share of weights, gradients and the optimizer's state); absent: fsdp from 50 million parameters on. With "
        "exact: true, pipeline: each process computes some of the model's blocks, as its blocks() names them, and has "
        "gradients and the optimizer's state of those alone; the result is the same as without",
    )

    @model_validator(mode="before")
    @classmethod
    def _whole(cls, given: Any) -> Any:
        """A batch of which each process has a part has no shards besides."""
        if isinstance(given, Mapping) and given.get("exact") is False:
            return {"shards": 1, **given}
        return given

    @model_validator(mode="after")
    def _divide(self) -> Self:
        if not self.exact:
            return self._without_shards()
        if self.engine not in (None, "pipeline"):
            raise ValueError(f"engine {self.engine} is for exact: false; set that, or leave engine out")
        if self.shards == 1:
            raise ValueError("shards 1 leaves nothing to share; use 2 or more, or leave parallel out")
        for name, number in (("shards", self.shards), ("processes", self.processes)):
            if isinstance(number, int) and (number < 1 or number & (number - 1)):
                below = 1 << max(number, 1).bit_length() - 1
                raise ValueError(f"{name} {number} is no power of two; use {below} or {2 * below}")
        if isinstance(self.processes, int) and self.processes > self.shards:
            raise ValueError(
                f"{self.processes} processes cannot share {self.shards} shards; use at most {self.shards} processes"
            )
        return self

    def _without_shards(self) -> Self:
        if self.engine == "pipeline":
            raise ValueError("engine pipeline with exact: false: it is exact; leave exact out, and say how many shards")
        if self.shards != 1:
            raise ValueError(
                f"shards {self.shards} with exact: false: shards fix the order of additions, which exact: false leaves "
                "to torch; leave out one of them"
            )
        if self.processes == "auto":
            raise ValueError(
                "processes auto with exact: false: the result depends on their number, which must not follow the "
                "machine; say how many"
            )
        if self.processes < 1:
            raise ValueError(f"processes {self.processes}: a training needs at least 1")
        return self

    def ranks(self, cores: int) -> int:
        """How many processes share a training where this number of cores is free for it."""
        if self.processes != "auto":
            return self.processes
        return min(self.shards, 1 << cores.bit_length() - 1)


class Job(Frozen):
    """What every stage of one run shares. Plain JSON: it travels to child processes and other machines."""

    run_id: str = Field(pattern=_RUN_ID)
    model: ModelName
    store: str
    workload: WorkloadRef
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    """Compute threads of a stage's process, where the stage does not say; None = all cores."""
    limits: dict[str, Limits] = Field(default_factory=dict)
    """By stage name; a stage that is not named has the defaults."""
    parallel: Parallel | None = None
    """How trainings are shared out among processes; None: each is a process of its own."""

    place: Place = "local"
    """Where processes of stages run; no part of a result's identity."""
    measure_on: str | None = None
    """Machines that measure, as :func:`model_registry.cpu_class.machine_name` calls them; None: the one that
    orchestrates."""

    @property
    def shards(self) -> int:
        """Of each batch of a training."""
        return self.parallel.shards if self.parallel else 1

    @property
    def engine(self) -> Literal["auto", "ddp", "fsdp"] | None:
        """What of torch adds gradients up; None where the bits do not depend on the number of processes."""
        if self.parallel is None or self.parallel.exact or self.parallel.engine == "pipeline":
            return None
        return self.parallel.engine or "auto"

    @property
    def pipelined(self) -> bool:
        """Whether shards of a batch pass through the processes, each of which has some of the model's blocks."""
        return self.parallel is not None and self.parallel.engine == "pipeline"

    def learning(self, task: TaskKind) -> Job:
        """The same once it is settled what the workload learns."""
        return self.model_copy(update={"workload": self.workload.model_copy(update={"task": task})})

    def limits_of(self, stage: str) -> Limits:
        return self.limits.get(stage, Limits())


def checked_run_id(run_id: str) -> str:
    """The run id, where it can name a folder, an object and a tag.

    Raises:
        SpecError: it cannot.
    """
    if re.fullmatch(_RUN_ID, run_id) is None:
        raise SpecError(f"run id {run_id!r} is refused: use letters, digits, '_', '.' and '-', at most 128")
    return run_id


@dataclass(frozen=True)
class Stage:
    """A step that computes in a child process and is cached by content.

    ``libraries``: distributions whose versions are part of the cache key. ``pool``: stages of
    one pool use the same libraries and may share a process; ``warms``: the pool of which a process is started ahead
    while this stage computes. ``exclusive``: nothing else of Winnow may compute meanwhile (measurements).
    """

    name: str
    entry: str
    libraries: tuple[str, ...] = ()
    pool: str = ""
    warms: str = ""
    seed_matters: bool = True
    device_matters: bool = True
    cpu_class_matters: bool = False
    machine_matters: bool = False
    workload_matters: bool = True
    exclusive: bool = False
    looks: bool = False
    """Whether it is computed for a plan, too: it takes seconds, and what comes after depends on what it finds."""
    threads: int | None = None
    """Compute threads of the child; None = all cores."""
    trains: bool = False
    """Whether its trainings can be shared out among processes."""
    yields: tuple[str, ...] = ()
    """Names of the variants it will make, for `--plan` only."""
    roles: tuple[str, ...] = ()
    """What each of them will be to the stage, where that matters."""


class Outcome(Record):
    """What a stage answers: the variants it made or found again, JSON values and other files."""

    stage: str
    name: str
    """The stage, with what it worked on where it runs several times: ``export:student``."""
    status: Literal["computed", "reused", "skipped"]
    reason: str = ""
    seconds: float
    compute_seconds: float = 0.0
    host: str = ""
    """Where it was computed in this run; empty where it was not."""
    cost_seconds: float = 0.0
    """What it took in its own process when it was computed, in this run or an earlier one."""
    key: str
    version: str
    variants: tuple[Variant, ...] = ()
    values: dict[str, Any] = Field(default_factory=dict)
    files: tuple[FileEntry, ...] = ()
    roles: dict[str, str] = Field(default_factory=dict)
    """Digests of variants by what they are to the stage, such as the method that made them. Names are only labels: a
    result that is reused has those of the run that made it."""

    def by_role(self, role: str) -> Variant | None:
        """The variant of that role, or None."""
        digest = self.roles.get(role)
        return next((v for v in self.variants if v.digest == digest), None)

    @property
    def variant(self) -> Variant:
        """The one variant; ValueError if there is not exactly one."""
        (variant,) = self.variants
        return variant

    def file(self, path: str) -> FileEntry | None:
        """The file of that name, or None."""
        return next((f for f in self.files if f.path == path), None)
