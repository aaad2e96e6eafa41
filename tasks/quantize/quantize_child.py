"""The quantize stage in its process. Imports no torch unless the workload has to be asked for the rows."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import onnx

from model_registry.cpu_class import cpu_class, sums_saturate
from model_registry.variant import Variant
from tasks.child import Child, Result
from tasks.onnx_cost import onnx_cost
from tasks.onnx_graph import strip
from tasks.quantize.agreement import agree, answers
from tasks.quantize.calibration import Feeds, RowReader, check_finite, choose_rows
from tasks.quantize.int8_dynamic import quantize_dynamically
from tasks.quantize.int8_share import int8_share
from tasks.quantize.int8_static import quantize_statically
from tasks.quantize.prepared_graph import prepare, why_not
from tasks.quantize.raw_rows import read_rows


def main(child: Child) -> Result:
    """Quantize the parent with each method that suits its graph."""
    assert child.data is not None
    spec, parent = child.spec, child.inputs["parent"]
    here = cpu_class()
    columns, targets = read_rows(child, parent.inputs)
    rows = np.arange(min(len(targets), spec["calibration_samples"]))
    if "static" in spec["methods"]:
        stratify = child.data.task == "classification"
        rows = choose_rows(targets, spec["calibration_samples"], stratify=stratify, seed=child.job.seed)
    columns = {name: values[rows] for name, values in columns.items()}
    file = child.store.fetch_bytes(parent.file("model.onnx"))
    wanted = answers(file, columns)
    check_finite(wanted, rows)
    prepared = prepare(file, child.workdir)
    shapes = {name: (1, *values.shape[1:]) for name, values in columns.items()}
    cost = onnx_cost(prepared, shapes)
    variants: list[Variant] = []
    values: dict[str, Any] = {
        "variants": {},
        "skipped": {},
        "cpu_class": here,
        "reduce_range": sums_saturate(here),
        "calibration_rows": len(rows) if "static" in spec["methods"] else 0,
    }
    for number, method in enumerate(spec["methods"]):
        child.progress(number / len(spec["methods"]), f"{method} int8 of {parent.name}")
        reason = why_not(prepared, method)
        if reason:
            values["skipped"][method] = reason
            continue
        quantized = _quantize(method, prepared, columns, child, reduce_range=sums_saturate(here))
        data = strip(quantized, merge_equal=True)
        name = f"{parent.name.removesuffix('.fp32')}.int8-{method}"
        variant = Variant(
            name=name,
            stage="quantize",
            format="onnx",
            files=(
                child.store.publish_bytes(data, "model.onnx"),
                *(f for f in parent.files if f.path.startswith("assets/")),
            ),
            inputs=parent.inputs,
            outputs=parent.outputs,
            runtime=parent.runtime.model_copy(update={"cpu_class": here}),
        )
        variants.append(variant)
        values["variants"][variant.digest] = {
            "name": name,
            "parameters": cost.parameters,
            "macs": cost.macs,
            "bytes": len(data),
            **asdict(int8_share(prepared, quantized, shapes)),
            **asdict(agree(wanted, answers(data, columns))),
        }
    return Result(variants=tuple(variants), values=values)


def _quantize(
    method: str, prepared: onnx.ModelProto, columns: Feeds, child: Child, *, reduce_range: bool
) -> onnx.ModelProto:
    spec = child.spec
    if method == "dynamic":
        return quantize_dynamically(prepared, child.workdir, per_channel=spec["per_channel"], reduce_range=reduce_range)
    return quantize_statically(
        prepared,
        RowReader(columns),
        child.workdir,
        method=spec["calibration_method"],
        percentile=spec["percentile"],
        per_channel=spec["per_channel"],
        reduce_range=reduce_range,
        signed_activations=cpu_class().startswith("aarch64/"),
    )
