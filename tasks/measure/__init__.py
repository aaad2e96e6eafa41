"""measure: accuracy, latency, memory and size of an exported variant, on validation, against the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pydantic import Field

from model_registry.measurement import Clocked, Measurement
from model_registry.variant import Frozen, Variant
from tasks.evidence.continuations import Continuations
from tasks.evidence.split_inputs import split_inputs
from tasks.running.policy import step
from tasks.running.splits import DataRef
from tasks.running.stage import Job, Outcome, Stage
from tasks.running.stage_cache import run_stage

_OF_MAX_LUTS = "multiplications up to which look-up tables of an FPGA are counted; follows from budget.max_luts"


class MeasureSpec(Frozen):
    """How variants are measured: interleaved with the baseline, round by round, on an otherwise quiet machine."""

    batch: int = Field(
        default=1, ge=1, le=65_536, description="older name of budget.batch", json_schema_extra={"deprecated": True}
    )
    rounds: int = Field(
        default=40, ge=5, description="number of interleaved rounds; each times baseline and variant once"
    )
    seconds: float = Field(
        default=1.0, gt=0, description="total time for the rounds of one variant, baseline included, in seconds"
    )
    requests: int = Field(
        default=100,
        ge=3,
        description="least number of requests of each variant and of the baseline, though that takes longer; absent, "
        "and with budget.p95_ms: 200",
    )
    predict_batch: int = Field(
        default=1,
        ge=1,
        le=65_536,
        description="number of samples per run when a split is predicted; above 1 a file of your own that takes an "
        "int8 scale from the whole batch answers differently",
    )
    luts_below: int | None = Field(default=None, gt=0, description=_OF_MAX_LUTS, json_schema_extra={"deprecated": True})


STAGE = Stage(
    name="measure",
    pool="numbers",
    entry="tasks.measure.measure_child:main",
    libraries=("onnxruntime", "numpy"),
    seed_matters=False,
    device_matters=False,
    cpu_class_matters=True,
    machine_matters=True,
    exclusive=True,
    yields=("variant",),
)

CLOCK = Stage(
    name="clock",
    pool="numbers",
    entry="tasks.measure.clock_child:main",
    libraries=("onnxruntime", "numpy"),
    seed_matters=False,
    device_matters=False,
    workload_matters=False,
    cpu_class_matters=True,
    machine_matters=True,
    exclusive=True,
)


CONTINUE = Stage(
    name="continue",
    pool="numbers",
    entry="tasks.measure.continue_child:main",
    libraries=("onnxruntime", "numpy", "tokenizers"),
    device_matters=False,
    workload_matters=False,
    cpu_class_matters=True,
)


class ContinueSpec(Frozen):
    """How many texts are continued, and how far."""

    prompts: int = Field(default=32, ge=1, le=64, description="beginnings of texts that both models continue")
    tokens: int = Field(default=48, ge=1, description="of each answer, at most")
    shown: int = Field(default=6, ge=0, description="answers that the report shows side by side")


class ClockSpec(Frozen):
    """How files are timed whose weights mean nothing yet."""

    batch: int = Field(default=1, ge=1, description="samples per request")
    seconds: float = Field(default=0.3, gt=0, description="time for each file, about")
    luts_below: int | None = Field(default=None, gt=0, description=_OF_MAX_LUTS)


@step(STAGE)
def measure(
    job: Job, spec: MeasureSpec, *, data: DataRef, variant: Variant, baseline: Outcome | None = None, label: str = ""
) -> Outcome:
    """Measure an ONNX variant on the validation split.

    Args:
        variant: what is measured; also the only variant of the outcome.
        baseline: the outcome of measuring the baseline (the teacher, exported fp32); None to measure the baseline.
        label: what to call it among the stages, if not by its name (the champion may be called as a candidate is).

    Returns:
        The outcome; :func:`measurement_of` reads the numbers from it.
    """
    inputs = {"variant": variant} if baseline is None else {"variant": variant, "baseline": baseline.variant}
    split = split_inputs(job, data).get("validation")
    scores = baseline.file("scores.npz") if baseline else None
    extra = {
        "split": "validation",
        "inputs": split.model_dump(mode="json") if split else None,
        "baseline_scores": scores.model_dump(mode="json") if scores else None,
    }
    stage = _estimating(STAGE, spec.luts_below)
    return run_stage(stage, job, spec, data=data, inputs=inputs, extra=extra, label=label or variant.name)


@step(CLOCK)
def clock(
    job: Job, spec: ClockSpec, *, data: DataRef, variants: Sequence[Variant], baseline: Variant, label: str
) -> Outcome:
    """Time ONNX variants in turns with the baseline, on rows of the validation split; nothing is predicted.

    Size and speed depend on a file's structure alone, so that a search can pass over structures without training them.

    Returns:
        The outcome; :func:`clocked_in` reads the numbers from it.
    """
    split = split_inputs(job, data).get("validation")
    extra = {"inputs": split.model_dump(mode="json") if split else None}
    inputs = {"baseline": baseline, **{f"variant{number}": v for number, v in enumerate(variants)}}
    return run_stage(_estimating(CLOCK, spec.luts_below), job, spec, data=data, inputs=inputs, extra=extra, label=label)


def _estimating(stage: Stage, luts_below: int | None) -> Stage:
    """The stage with what estimates an FPGA's tables among its libraries, where that is asked for."""
    return stage if luts_below is None else replace(stage, libraries=(*stage.libraries, "da4ml"))


@step(CONTINUE)
def continue_texts(job: Job, spec: ContinueSpec, *, data: DataRef, variant: Variant, baseline: Variant) -> Outcome:
    """Have beginnings of the test split's texts continued by a language model and by its baseline, greedily.

    Returns:
        The outcome; :func:`continuations_in` reads what they say from it.
    """
    extra = {"inputs": split_inputs(job, data)["test"].model_dump(mode="json")}
    inputs = {"variant": variant, "baseline": baseline}
    return run_stage(CONTINUE, job, spec, data=data, inputs=inputs, extra=extra, label=variant.name)


def continuations_in(outcome: Outcome) -> Continuations:
    """What is in an outcome of :func:`continue_texts`; KeyError if it was only planned."""
    return Continuations.model_validate(outcome.values["continuations"])


def clocked_in(outcome: Outcome) -> dict[str, Clocked]:
    """The numbers in an outcome of :func:`clock`, by digest; KeyError if it was only planned."""
    found = (Clocked.model_validate(each) for each in outcome.values["clocked"])
    return {each.digest: each for each in found}


def measurement_of(outcome: Outcome) -> Measurement:
    """The measurement in an outcome of :func:`measure`; KeyError if the outcome was only planned."""
    return Measurement.model_validate(outcome.values["measurement"])
