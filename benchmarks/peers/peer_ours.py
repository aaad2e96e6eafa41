"""Winnow's own post-training quantization, as a stage runs it: ``peer_ours.py FOLDER MAX_DROP ROWS SPEC [--relative]``.

Writes ``ours-static.onnx`` (the defaults), ``ours-recipe.onnx`` (equalization, bias correction, calibration method
chosen) and ``ours-control.onnx`` (that with accuracy control by the workload's metric), and ``peer_ours.json`` with
seconds per file.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).parent.parent.parent))

from flows.spec import load_spec
from model_registry.cpu_class import cpu_class, sums_saturate
from tasks.onnx_models.byte_input import fold_byte_inputs
from tasks.onnx_models.float_biases import float_biases
from tasks.onnx_models.onnx_graph import signature, strip
from tasks.quantize.accuracy_control import control_accuracy
from tasks.quantize.agreement import agree, top_answers
from tasks.quantize.bias_correction import add_biases
from tasks.quantize.calibration import Feeds
from tasks.quantize.equalization import equalize
from tasks.quantize.layer_groups import layer_groups
from tasks.quantize.prepared_graph import prepare
from tasks.quantize.static_recipe import static_recipe
from tasks.running.splits import TARGET
from tasks.workloads.workload import Workload, load_workload

VERSIONS = ("winnow-mlops", "onnx", "onnxruntime", "numpy")
_SAME = 1e-3
"""As tasks/quantize/quantized_forms.py: equalization may change the fp32 answers by no more."""


def recipe(file: bytes, feeds: Feeds, folder: Path, *, careful: bool) -> tuple[Any, Any, dict[str, Any]]:
    """The prepared graph, the builder of the int8 one, and what was decided. ``careful``: not the defaults."""
    folder.mkdir()
    wanted = top_answers(file, feeds)
    prepared = prepare(file, folder)
    notes: dict[str, Any] = {}
    if careful:
        found = equalize(prepared)
        error = agree(wanted, top_answers(found.model.SerializeToString(), feeds)).error
        notes["equalized_pairs"] = len(found.pairs) if error <= _SAME else 0
        prepared = add_biases(found.model if error <= _SAME else prepared)
    build, decided = static_recipe(
        prepared,
        feeds,
        wanted,
        folder,
        method="auto" if careful else "minmax",
        percentile=99.99,
        per_channel=True,
        reduce_range=sums_saturate(cpu_class()),
        activations="int8" if cpu_class().startswith("aarch64/") else "uint8",
        correct_biases=careful,
    )
    return prepared, build, notes | decided


def controlled(
    file: bytes, prepared: Any, build: Any, rows: dict[str, NDArray[Any]], workload: Workload, max_drop: float
) -> tuple[frozenset[str], dict[str, Any]]:
    """The nodes to leave in fp32."""
    feeds = {name: values for name, values in rows.items() if name != TARGET}
    parent, targets = top_answers(file, feeds), rows[TARGET]
    sign = 1.0 if workload.metric(targets, parent).better == "higher" else -1.0
    best = workload.scores(parent, targets).mean()

    def predict(excluded: frozenset[str], chosen: NDArray[np.int64] | None) -> NDArray[Any]:
        asked = feeds if chosen is None else {name: values[chosen] for name, values in feeds.items()}
        return top_answers(build(excluded).SerializeToString(), asked)

    found = control_accuracy(
        layer_groups(prepared, {name: (1, *values.shape[1:]) for name, values in feeds.items()}),
        predict=predict,
        parent=parent,
        drop=lambda outputs: float(sign * (best - workload.scores(outputs, targets).mean())),
        max_drop=max_drop,
        samples=300,
    )
    return found.excluded, {"fp32_layers": list(found.fp32_groups), "validation_drop": found.drop}


def write(file: Path, quantized: Any) -> None:
    """As tasks/quantize/quantized_forms.py finishes it."""
    float_biases(quantized)
    fold_byte_inputs(quantized)
    file.write_bytes(strip(quantized, merge_equal=True))


def main(folder: Path, max_drop: float, validation_rows: int, spec: str, relative: str = "") -> None:
    file = (folder / "fp32.onnx").read_bytes()
    taken = {tensor.name for tensor in signature(onnx.load_from_string(file))[0]}
    with np.load(folder / "calibration.npz", allow_pickle=False) as archive:
        feeds = {name: archive[name] for name in archive.files if name in taken}
    with np.load(folder / "validation.npz", allow_pickle=False) as archive:
        rows = {name: archive[name][:validation_rows] for name in archive.files if name in taken or name == TARGET}
    workload = load_workload(load_spec(spec).workload)
    made: dict[str, Any] = {"versions": {name: importlib.metadata.version(name) for name in VERSIONS}}
    with tempfile.TemporaryDirectory() as work:
        for name in ("ours-static", "ours-recipe"):
            began = time.monotonic()
            prepared, build, notes = recipe(file, feeds, Path(work) / name, careful=name == "ours-recipe")
            write(folder / f"{name}.onnx", build(frozenset()))
            made[name] = {"seconds": time.monotonic() - began, **notes}
        began = time.monotonic()
        parent = top_answers(file, {name: values for name, values in rows.items() if name != TARGET})
        share = abs(workload.scores(parent, rows[TARGET]).mean()) if relative else 1.0
        excluded, notes = controlled(file, prepared, build, rows, workload, max_drop * share)
        write(folder / "ours-control.onnx", build(excluded))
        seconds = made["ours-recipe"]["seconds"] + time.monotonic() - began  # it starts from that recipe
        made["ours-control"] = {"seconds": seconds, **notes}
    (folder / "peer_ours.json").write_text(json.dumps(made, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
