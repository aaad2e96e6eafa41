"""Every form that an ONNX file is quantized to: which suit its graph, how each is built, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from model_registry.cpu_class import cpu_class, sums_saturate
from tasks.onnx_models.byte_input import fold_byte_inputs
from tasks.onnx_models.float_biases import float_biases
from tasks.onnx_models.onnx_cost import onnx_cost
from tasks.onnx_models.onnx_graph import strip
from tasks.quantize.accuracy_control import control_accuracy
from tasks.quantize.agreement import agree, top_answers
from tasks.quantize.bias_correction import add_biases
from tasks.quantize.calibration import Feeds
from tasks.quantize.equalization import equalize
from tasks.quantize.half_precision import to_half, why_it_does_not_load
from tasks.quantize.int8_dynamic import quantize_dynamically
from tasks.quantize.int8_share import int8_share
from tasks.quantize.int8_static import Activations
from tasks.quantize.layer_groups import layer_groups
from tasks.quantize.metric_drop import Drop
from tasks.quantize.power_of_two import snap_scales
from tasks.quantize.prepared_graph import prepare, why_not
from tasks.quantize.recurrent_weights import round_recurrent_weights
from tasks.quantize.saturation import saturating_layers
from tasks.quantize.static_recipe import STATIC, Build, static_recipe
from tasks.quantize.symmetric_form import suit_accelerators
from tasks.quantize.table_rows import round_tables
from tasks.quantize.trimmed_tables import trim_tables
from tasks.quantize.weight_only import quantize_weights, runs_as_float

_SAME = 1e-3


@dataclass(frozen=True)
class Quantizing:
    """How a file is quantized; each as ``QuantizeSpec`` describes it."""

    methods: tuple[str, ...]
    calibration_method: str
    percentile: float
    per_channel: bool
    scales: str
    equalize: bool
    bias_correction: bool
    tables: int

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> Quantizing:
        """What a stage's spec says about it."""
        return cls(**{field.name: spec[field.name] for field in fields(cls)})


@dataclass(frozen=True)
class Control:
    """By what accuracy control decides.

    ``feeds``: validation rows by input name. ``outputs``: the fp32 file's answers to them. ``drop``: how much worse
    other answers are, in the unit of ``metric``; at most ``max_drop``. ``samples``: rows that layers are ranked on.
    """

    feeds: Feeds
    outputs: NDArray[Any]
    drop: Drop
    metric: str
    max_drop: float
    samples: int


@dataclass(frozen=True)
class QuantizedForm:
    """One file. ``any_cpu``: it is computed in floats alike on every class of CPU. ``facts``: as JSON. ``assets``:
    files that go with it in place of its parent's, by path."""

    method: str
    data: bytes
    any_cpu: bool
    facts: dict[str, Any]
    assets: Mapping[str, bytes] = field(default_factory=dict)


class FormBuilder:
    """Quantizes one file.

    Args:
        file: the fp32 ONNX file.
        feeds: calibration rows by input name; ``wanted``: the file's answers to them.
        folder: for files on the way.
        control: leave the layers in fp32 that cost too much; None: quantize all of them.
        seen: ids in training, by input: tables lose the rows of all others.

    ``notes``: what was decided and skipped, and warnings, as JSON.
    """

    def __init__(
        self,
        file: bytes,
        feeds: Feeds,
        wanted: NDArray[Any],
        quantizing: Quantizing,
        *,
        folder: Path,
        control: Control | None = None,
        seen: Feeds | None = None,
    ) -> None:
        self.feeds, self.wanted, self.quantizing, self.folder, self.control = feeds, wanted, quantizing, folder, control
        self.notes: dict[str, Any] = {"skipped": {}, "warnings": []}
        self.shapes = {name: (1, *values.shape[1:]) for name, values in feeds.items()}
        self._plain = prepare(file, folder)
        if seen is not None:
            self._trim(seen)
        self._prepared = self._equalized()
        self._cost = onnx_cost(self._prepared, self.shapes)
        self._saturates = sums_saturate(cpu_class())

    def forms(self, progress: Callable[[float, str], None]) -> list[QuantizedForm]:
        """One by each method that suits the graph; ``progress`` takes a fraction of the whole and a line of text.

        Raises:
            CalibrationError: the calibration rows cannot be used.
            ParityFailed: accuracy control meets a metric that is not a finite number.
        """
        made = []
        for number, method in enumerate(self.quantizing.methods):
            progress(number / len(self.quantizing.methods), method)
            form = why_not(self._plain, method) or self._form(method)
            if isinstance(form, str):
                self.notes["skipped"][method] = form
            else:
                made.append(form)
        return made

    def _form(self, method: str) -> QuantizedForm | str:
        """The file, or why there is none."""
        quantized = to_half(self._plain) if method == "fp16" else self._controlled(method, self._build(method))
        recurrent = round_recurrent_weights(quantized) if method != "fp16" else ()
        if method != "fp16":
            round_tables(quantized, bits=4 if method == "weights4" else self.quantizing.tables)
        if method == "static":
            float_biases(quantized)
            fold_byte_inputs(quantized)
        elif method == "symmetric":
            suit_accelerators(quantized)
        data = strip(quantized, merge_equal=True)
        reason = why_it_does_not_load(data) if method == "fp16" else ""
        share = int8_share(self._plain if method == "fp16" else self._prepared, quantized, self.shapes)
        if method != "fp16" and share.quantized == 0:
            reason = "accuracy control put every layer back to fp32: a larger max_drop is needed"
        if reason:
            return reason
        if method in STATIC and self._saturates and (layers := saturating_layers(quantized)):
            self.notes["warnings"].append(f"16-bit sums of {len(layers)} int8 layers may saturate: {', '.join(layers)}")
        facts = {
            "parameters": self._cost.parameters,
            "macs": self._cost.macs,
            "bytes": len(data),
            **asdict(share),
            **asdict(agree(self.wanted, top_answers(data, self.feeds))),
        }
        if method in (*STATIC, "dynamic"):
            facts["fp32_layers"] = [*facts["fp32_layers"], *(f"{layer} (from int8 weights)" for layer in recurrent)]
        # Floats are computed alike everywhere; kernels of int8 and int4 weights may round activations to int8 too.
        any_cpu = method == "fp16" or (method == "weights8" and runs_as_float(quantized))
        return QuantizedForm(method, data, any_cpu, facts)

    def _trim(self, seen: Feeds) -> None:
        self.notes["trimmed"] = [asdict(table) for table in trim_tables(self._plain, seen, self.feeds)]

    def _equalized(self) -> ModelProto:
        """The graph that is quantized: equalized and with biases to correct, as far as that is asked for."""
        prepared = self._plain
        if self.quantizing.equalize:
            found = equalize(self._plain)
            error = agree(self.wanted, top_answers(found.model.SerializeToString(), self.feeds)).error
            pairs = len(found.pairs) if error <= _SAME else 0
            self.notes["equalization"] = {"pairs": pairs, "skipped": list(found.skipped), "error": error}
            if error <= _SAME:
                prepared = found.model
            else:
                self.notes["warnings"].append(
                    f"equalization is left out: it changed the fp32 answers by {error:.2g} of their size"
                )
        corrected = self.quantizing.bias_correction and not STATIC.isdisjoint(self.quantizing.methods)
        return add_biases(prepared) if corrected else prepared

    def _build(self, method: str) -> Build:
        prepared, quantizing = self._prepared, self.quantizing
        if method in STATIC:
            build, notes = static_recipe(
                prepared,
                self.feeds,
                self.wanted,
                self.folder,
                method=quantizing.calibration_method,
                percentile=quantizing.percentile,
                per_channel=quantizing.per_channel,
                reduce_range=self._saturates,
                activations=_activations(method),
                correct_biases=quantizing.bias_correction,
            )
            self.notes.update(notes if method == "static" else {method: notes})
            if quantizing.scales == "any":
                return build
            most = 64 if self._saturates else 127
            return lambda excluded: snap_scales(build(excluded), prepared, most=most)
        if method == "dynamic":
            return lambda excluded: quantize_dynamically(
                prepared, per_channel=quantizing.per_channel, reduce_range=self._saturates, excluded=excluded
            )
        bits = {"weights8": 8, "weights4": 4}[method]
        return lambda excluded: quantize_weights(prepared, bits=bits, excluded=excluded)

    def _controlled(self, method: str, build: Build) -> ModelProto:
        """The quantized model, with the layers in fp32 that accuracy control leaves there."""
        control = self.control
        if control is None:
            return build(frozenset())

        def predict(excluded: frozenset[str], rows: NDArray[np.int64] | None) -> NDArray[Any]:
            feeds = control.feeds
            chosen = feeds if rows is None else {name: values[rows] for name, values in feeds.items()}
            return top_answers(build(excluded).SerializeToString(), chosen)

        found = control_accuracy(
            layer_groups(self._prepared, self.shapes),
            predict=predict,
            parent=control.outputs,
            drop=control.drop,
            max_drop=control.max_drop,
            samples=control.samples,
        )
        report = asdict(found) | {"metric": control.metric, "max_drop": control.max_drop, "rows": len(control.outputs)}
        del report["excluded"]
        self.notes.setdefault("accuracy_control", {})[method] = report
        return build(found.excluded)


def _activations(method: str) -> Activations:
    if method == "symmetric":
        return "symmetric"
    return "int8" if cpu_class().startswith("aarch64/") else "uint8"
