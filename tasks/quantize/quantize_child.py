"""The quantize stage in its process. Imports no torch unless the workload has to be asked for rows or scores."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from model_registry.cpu_class import cpu_class, sums_saturate
from model_registry.variant import Variant
from tasks.onnx_models.byte_input import fold_byte_inputs
from tasks.onnx_models.float_biases import float_biases
from tasks.onnx_models.onnx_cost import Shapes, onnx_cost
from tasks.onnx_models.onnx_graph import strip
from tasks.quantize.accuracy_control import Controlled, control_accuracy
from tasks.quantize.agreement import agree, top_answers
from tasks.quantize.bias_correction import add_biases
from tasks.quantize.calibration import Feeds, check_finite, choose_rows
from tasks.quantize.calibration_drift import compare_rows
from tasks.quantize.equalization import equalize
from tasks.quantize.form_name import form_name
from tasks.quantize.half_precision import to_half, why_it_does_not_load
from tasks.quantize.int8_dynamic import quantize_dynamically
from tasks.quantize.int8_share import int8_share
from tasks.quantize.layer_groups import layer_groups
from tasks.quantize.metric_drop import Drop, drop_of_agreement, drop_of_metric
from tasks.quantize.prepared_graph import prepare, why_not
from tasks.quantize.raw_rows import read_rows
from tasks.quantize.saturation import saturating_layers
from tasks.quantize.static_recipe import Build, static_recipe
from tasks.quantize.weight_only import quantize_weights, runs_as_float
from tasks.running.child import Child, Result
from tasks.running.errors import WorkloadError
from tasks.running.splits import TARGET, read_split

_COMPARED_BYTES = 256 << 20
"""Training data larger than this are not fetched just to be compared with the calibration rows."""
_SAME = 1e-3


@dataclass(frozen=True)
class _Model:
    """The parent: its file, the graph that is quantized, calibration rows and its answers to them."""

    file: bytes
    prepared: ModelProto
    shapes: Shapes
    feeds: Feeds
    wanted: NDArray[Any]


def main(child: Child) -> Result:
    """Quantize the parent with each method that suits its graph."""
    spec, parent = child.spec, child.inputs["parent"]
    here = cpu_class()
    label = child.extra.get("label") or parent.name.removesuffix(".fp32")
    columns, targets = read_rows(child, parent.inputs, "calibration")
    rows = np.arange(min(len(targets), spec["calibration_samples"]))
    calibrated = "static" in spec["methods"]
    if calibrated:
        stratify = child.data.task == "classification"
        rows = choose_rows(targets, spec["calibration_samples"], stratify=stratify, seed=child.job.seed)
    columns = {name: values[rows] for name, values in columns.items()}
    file = child.store.fetch_bytes(parent.file("model.onnx"))
    wanted = top_answers(file, columns)
    check_finite(wanted, rows)
    plain = prepare(file, child.workdir)
    values: dict[str, Any] = {
        "variants": {},
        "skipped": {},
        "warnings": _compare_with_training(child) if calibrated else [],
        "cpu_class": here,
        "reduce_range": sums_saturate(here),
        "calibration_rows": len(rows) if calibrated else 0,
    }
    shapes = {name: (1, *values.shape[1:]) for name, values in columns.items()}
    model = _Model(file, _equalized(plain, child, columns, wanted, values), shapes, columns, wanted)
    cost = onnx_cost(model.prepared, shapes)
    variants: list[Variant] = []
    for number, method in enumerate(spec["methods"]):
        child.progress(number / len(spec["methods"]), f"{method} of {parent.name}")
        reason = why_not(plain, method)
        if reason:
            values["skipped"][method] = reason
            continue
        if method == "fp16":
            quantized = to_half(plain)
        else:
            build = _builder(method, model, child, values)
            excluded: frozenset[str] = frozenset()
            if spec["accuracy_control"]:
                controlled = _control(method, build, model, child, values)
                excluded = controlled.excluded
            quantized = build(excluded)
        if method == "static":
            float_biases(quantized)
            fold_byte_inputs(quantized)
        data = strip(quantized, merge_equal=True)
        reason = why_it_does_not_load(data) if method == "fp16" else ""
        share = int8_share(plain if method == "fp16" else model.prepared, quantized, shapes)
        if method != "fp16" and share.quantized == 0:
            reason = "accuracy control put every layer back to fp32: a larger max_drop is needed"
        if reason:
            values["skipped"][method] = reason
            continue
        if method == "static" and sums_saturate(here) and (layers := saturating_layers(quantized)):
            values["warnings"].append(f"16-bit sums of {len(layers)} int8 layers may saturate: {', '.join(layers)}")
        name = form_name(label, method)
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
            # Floats are computed alike everywhere; kernels of int8 and int4 weights may round activations to int8 too.
            runtime=parent.runtime.model_copy(update={"cpu_class": None if _is_float(method, quantized) else here}),
        )
        variants.append(variant)
        values["variants"][variant.digest] = {
            "name": name,
            "parameters": cost.parameters,
            "macs": cost.macs,
            "bytes": len(data),
            **asdict(share),
            **asdict(agree(wanted, top_answers(data, columns))),
        }
    return Result(variants=tuple(variants), values=values)


def _is_float(method: str, quantized: ModelProto) -> bool:
    return method == "fp16" or (method == "weights8" and runs_as_float(quantized))


def _equalized(
    plain: ModelProto, child: Child, columns: Feeds, wanted: NDArray[Any], values: dict[str, Any]
) -> ModelProto:
    """The graph that is quantized: equalized and with biases to correct, as the spec says."""
    prepared = plain
    if child.spec["equalize"]:
        found = equalize(plain)
        error = agree(wanted, top_answers(found.model.SerializeToString(), columns)).error
        values["equalization"] = {"pairs": len(found.pairs), "skipped": list(found.skipped), "error": error}
        if error <= _SAME:
            prepared = found.model
        else:
            values["equalization"]["pairs"] = 0
            values["warnings"].append(
                f"equalization is left out: it changed the fp32 answers by {error:.2g} of their size"
            )
    return add_biases(prepared) if child.spec["bias_correction"] and "static" in child.spec["methods"] else prepared


def _builder(method: str, model: _Model, child: Child, values: dict[str, Any]) -> Build:
    spec = child.spec
    reduce_range = sums_saturate(cpu_class())
    if method == "static":
        build, notes = static_recipe(
            model.prepared,
            model.feeds,
            model.wanted,
            child.workdir,
            method=spec["calibration_method"],
            percentile=spec["percentile"],
            per_channel=spec["per_channel"],
            reduce_range=reduce_range,
            signed_activations=cpu_class().startswith("aarch64/"),
            correct_biases=spec["bias_correction"],
        )
        values.update(notes)
        return build
    if method == "dynamic":
        per_channel = spec["per_channel"]
        return lambda excluded: quantize_dynamically(
            model.prepared, child.workdir, per_channel=per_channel, reduce_range=reduce_range, excluded=excluded
        )
    bits = {"weights8": 8, "weights4": 4}[method]
    return lambda excluded: quantize_weights(model.prepared, bits=bits, excluded=excluded)


def _control(method: str, build: Build, model: _Model, child: Child, values: dict[str, Any]) -> Controlled:
    """Find the layers that must stay in fp32, on the validation split."""
    spec, parent = child.spec["accuracy_control"], child.inputs["parent"]
    feeds, targets = read_rows(child, parent.inputs, "validation")
    outputs = top_answers(model.file, feeds)
    metric, drop = child.data.metric.name, _drop(child, outputs, targets, values)
    if drop is None:
        metric, drop = "agreement", drop_of_agreement(outputs)

    def predict(excluded: frozenset[str], rows: NDArray[np.int64] | None) -> NDArray[Any]:
        chosen = feeds if rows is None else {name: values[rows] for name, values in feeds.items()}
        return top_answers(build(excluded).SerializeToString(), chosen)

    found = control_accuracy(
        layer_groups(model.prepared, model.shapes),
        predict=predict,
        parent=outputs,
        drop=drop,
        max_drop=spec["max_drop"],
        samples=spec["samples"],
    )
    report = asdict(found) | {"metric": metric, "max_drop": spec["max_drop"], "rows": len(targets)}
    del report["excluded"]
    values.setdefault("accuracy_control", {})[method] = report
    return found


def _drop(child: Child, outputs: NDArray[Any], targets: NDArray[Any], values: dict[str, Any]) -> Drop | None:
    try:
        return drop_of_metric(child.data, child.job.workload, outputs, targets)
    except WorkloadError as error:
        values["warnings"].append(f"accuracy control counts changed answers, not the metric: {error.message}")
        return None


def _compare_with_training(child: Child) -> list[str]:
    sizes = {split.name: split.file.size for split in child.data.splits}
    if sizes.get("train", _COMPARED_BYTES + 1) > _COMPARED_BYTES:
        return []
    train, ours = (read_split(child.store, child.data, name) for name in ("train", "calibration"))
    train.pop(TARGET, None)
    return compare_rows(train, ours)
