"""Export: a torch variant becomes one ONNX file with its preprocessing inside, proved equal to the model."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from model_registry.form_name import form_name
from model_registry.variant import Frozen, Variant
from tasks.running.policy import step
from tasks.running.splits import DataRef
from tasks.running.stage import Job, Outcome, Stage
from tasks.running.stage_cache import run_stage


class ExportSpec(Frozen):
    """Export to ONNX (opset 20, free batch dimension, one stripped file)."""

    tolerance: float = Field(
        default=1e-4,
        gt=0,
        lt=1,
        description="largest difference allowed between the answers of torch and ONNX Runtime; relative for outputs "
        "larger than 1",
    )
    threads: int = Field(
        default=1, ge=1, le=1024, description="older name of budget.threads", json_schema_extra={"deprecated": True}
    )


STAGE = Stage(
    name="export",
    pool="torch",
    warms="numbers",
    entry="tasks.export.export_child:main",
    libraries=("torch", "onnx", "onnxscript", "onnxruntime"),
    seed_matters=False,
    device_matters=False,
)


@step(STAGE)
def export(job: Job, spec: ExportSpec, *, data: DataRef, parent: Variant) -> Outcome:
    """Write ``<parent>.fp32``: raw inputs in, ``logits`` (classifiers) or ``prediction`` out.

    Values: ``variants`` by digest (``name``, ``parameters``, ``macs``, ``bytes``), ``opset``, ``parity`` by batch.

    Raises:
        ExportRefused: the model cannot be traced.
        ParityFailed: the file does not answer as the model does.
    """
    stage = replace(STAGE, yields=(form_name(parent.name, "fp32"),))
    return run_stage(stage, job, spec, data=data, inputs={"parent": parent}, label=parent.name)
