"""Target xla: the variant as StableHLO, asked on what JAX finds here, against the answers of ONNX Runtime."""

from __future__ import annotations

from importlib.metadata import version

import jax

from tasks.compile.answer_proof import TOLERANCE, prove
from tasks.compile.form_request import FormRequest, MadeForm
from tasks.compile.xla_program import PLATFORMS, call_program, xla_program
from tasks.onnx_models.graph_as_run import as_run

ARTIFACT = "model.stablehlo"


def make_xla(asked: FormRequest) -> MadeForm:
    """Compile, and ask about every row.

    Raises:
        TargetUnsupported: names the node that cannot be taken.
    """
    made = xla_program(as_run(asked.file, asked.folder), asked.variant.inputs)
    asked.progress(0.3, f"asking about {len(asked.inputs[0])} rows")
    run = call_program(made.artifact)
    tolerance = TOLERANCE if made.float_operators else 0.0
    proof = prove(run, asked.inputs, asked.wanted, batch=asked.batch, tolerance=tolerance)
    named = ", ".join(made.float_operators)
    fields = {
        "device": jax.devices()[0].platform,
        "facts": {
            "platforms": ", ".join(PLATFORMS),
            "arithmetic": f"floats in {named}" if named else "whole numbers, but for one multiplication a sum",
        },
        "versions": {name: version(name) for name in ("jax", "onnxruntime")},
        **proof,
    }
    return MadeForm(fields, {ARTIFACT: made.artifact})
