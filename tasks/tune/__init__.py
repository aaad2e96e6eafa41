"""Tune: one ONNX variant, run in the fastest way measured on this machine; kept as it is where nothing is faster."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

from pydantic import Field

from model_registry.variant import Frozen, Variant
from tasks.evidence.split_inputs import split_inputs
from tasks.policy import step
from tasks.source_hash import closure_hash
from tasks.splits import DataRef
from tasks.stage import Job, Outcome, Stage
from tasks.stage_cache import run_stage

TuningOption = Literal["threads", "spinning", "arena", "levels", "layouts", "fusions", "folded"]


class TuneSpec(Frozen):
    """Session options and graph rewrites, kept only where they are measured to be faster."""

    options: tuple[TuningOption, ...] = Field(
        default=get_args(TuningOption),
        min_length=1,
        description="what is tried: other numbers of threads; threads that spin while they wait (faster with several, "
        "and a core each burns between requests); no memory arena; lower levels of graph optimization; no layouts of "
        "the CPU's own; single kinds of fusions left out; a file with its constants folded",
    )
    threads: int = Field(default=1, ge=1, description="most intra-op threads that a request may use")
    batch: int = Field(default=1, ge=1, description="samples per request")
    rounds: int = Field(default=20, ge=5, description="interleaved rounds per option; each times both sides once")
    seconds: float = Field(default=1.0, gt=0, description="time given to the rounds of one option, both sides together")
    tolerance: float = Field(
        default=1e-4,
        gt=0,
        lt=1,
        description="largest difference of an answer allowed, relative to answers larger than 1; in int8 a larger one "
        "is allowed where every row keeps its largest output",
    )


STAGE = Stage(
    name="tune",
    pool="numbers",
    entry="tasks.tune.tune_child:main",
    libraries=("onnxruntime", "onnx", "numpy"),
    seed_matters=False,
    device_matters=False,
    cpu_class_matters=True,
    machine_matters=True,
    exclusive=True,
)


@step(STAGE)
def tune(job: Job, spec: TuneSpec, *, data: DataRef, variant: Variant, label: str = "") -> Outcome:
    """Make ``<name>.tuned`` of an ONNX variant, or answer the very same variant where nothing makes it faster.

    Args:
        label: instead of the variant's name, for the tuned one and the stage.

    Values: ``variants`` by digest (``name``, ``parameters``, ``macs``, ``bytes``), ``kept`` (names of options),
    ``options`` (a row per option: ``option``, ``ratio`` of the latency as it is to that with the option, its
    ``interval``, ``difference`` of the answers, ``verdict`` kept or dropped, ``reason``), ``control`` (the interval of
    two equal engines, which an option must beat), ``confirmed`` (all that is kept, measured again), ``p50_ms`` and
    ``tuned_p50_ms``, ``threads``, ``batch``.

    Raises:
        ChildFailed: the variant itself does not run, or the machine has fewer CPUs than threads.
    """
    name = label or variant.name
    split = split_inputs(job, data).get("validation")
    extra = {
        "inputs": split.model_dump(mode="json") if split else None,
        # It belongs to serving, which no task imports: its source enters the key here.
        "tuning": closure_hash("serving.tuning"),
        "name": f"{name}.tuned",
    }
    stage = replace(STAGE, yields=(f"{name}.tuned",))
    return run_stage(stage, job, spec, data=data, inputs={"variant": variant}, extra=extra, label=name)
