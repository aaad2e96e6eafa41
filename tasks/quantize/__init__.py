"""Quantize: an fp32 ONNX variant becomes int8 ones, for the int8 instructions of this class of CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field

from model_registry.variant import Frozen, Variant
from tasks.evidence.split_inputs import split_inputs
from tasks.policy import step
from tasks.splits import DataRef
from tasks.stage import Job, Outcome, Stage
from tasks.stage_cache import run_stage


class QuantizeSpec(Frozen):
    """Quantization to int8 with ONNX Runtime, after training."""

    methods: tuple[Literal["static", "dynamic"], ...] = Field(
        default=("static", "dynamic"),
        min_length=1,
        description="static: activations too, with ranges from calibration data; dynamic: MatMul and Gemm only, ranges "
        "measured at run time",
    )
    calibration_samples: int = Field(
        default=256, ge=16, le=100_000, description="rows of the calibration split used, drawn evenly over the classes"
    )
    calibration_method: Literal["minmax", "percentile", "entropy"] = Field(
        default="minmax", description="how static finds the range of an activation; try percentile against outliers"
    )
    percentile: float = Field(
        default=99.99, gt=50, le=100, description="share of the values inside the range, in percent, for percentile"
    )
    per_channel: bool = Field(default=True, description="a scale per output channel of a weight, not one for all")


STAGE = Stage(
    name="quantize",
    pool="numbers",
    entry="tasks.quantize.quantize_child:main",
    libraries=("onnxruntime", "onnx", "numpy"),
    device_matters=False,
    cpu_class_matters=True,
)


@step(STAGE)
def quantize(job: Job, spec: QuantizeSpec, *, data: DataRef, parent: Variant) -> Outcome:
    """Make ``<model>.int8-static`` and ``<model>.int8-dynamic`` of ``<model>.fp32`` or a user's own ONNX file.

    Values: ``variants`` by digest (``name``, ``parameters``, ``macs``, ``bytes``, ``quantized`` and ``quantizable``
    layers, ``share`` of the multiply-accumulates in int8, ``fp32_layers``, ``agreement`` with the parent on the
    calibration rows), ``skipped`` (method to reason), ``calibration_rows``, ``reduce_range``.

    Raises:
        CalibrationError: too few calibration rows, or rows that are not finite.
    """
    rows = split_inputs(job, data).get("calibration")
    extra = {"rows": rows.model_dump(mode="json") if rows else None}
    label = parent.name.removesuffix(".fp32")
    stage = replace(STAGE, yields=tuple(f"{label}.int8-{method}" for method in spec.methods))
    return run_stage(stage, job, spec, data=data, inputs={"parent": parent}, extra=extra, label=label)
