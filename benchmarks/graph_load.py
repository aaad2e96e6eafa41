"""How long ONNX Runtime takes to load a model as exported, and from the optimised graph that it saved before.

``python benchmarks/graph_load.py`` makes three kinds of models: deep CNNs in fp32 and int8, and a stack of an encoder's
feed-forward blocks. Each is loaded both ways, in turns and in an order drawn for each round, and CPU time is counted,
which a busy machine hardly changes. For the question whether keeping optimised graphs would pay (decision 18).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

sys.path.append(str(Path(__file__).parent.parent))

from benchmarks.machine_facts import circumstances

MODELS = ("fp32 CNN", "int8 CNN", "fp32 encoder")


class Noise(CalibrationDataReader):  # type: ignore[misc]  # untyped library
    """A few random images; the ranges do not matter here."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        rng = np.random.default_rng(1)
        self._rows = iter([{"x": rng.normal(size=(1, *shape)).astype(np.float32)} for _ in range(4)])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._rows, None)


def main() -> None:
    """Measure and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="loads of each model, each way")
    parser.add_argument("--depth", type=int, default=200, help="convolutions of a CNN; a tenth as many encoder blocks")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    if arguments.rounds < 3 or arguments.depth < 10:
        parser.error("at least 3 rounds and a depth of 10 are needed")
    with tempfile.TemporaryDirectory() as folder:
        rows = [row(name, Path(folder) / name.replace(" ", "-"), arguments) for name in MODELS]
    if arguments.json:
        print(json.dumps({**circumstances(["onnxruntime", "onnx"]), "rounds": arguments.rounds, "models": rows}))
        return
    print(json.dumps(circumstances(["onnxruntime", "onnx"])))
    for found in rows:
        exported, optimised = found["exported_ms"], found["optimised_ms"]
        print(
            f"{found['model']:13} {found['nodes']:5} nodes {found['bytes'] / 1e6:6.1f} MB   "
            f"as exported {exported[1]:6.0f} ({exported[0]:.0f} - {exported[2]:.0f}) ms   "
            f"optimised {optimised[1]:6.0f} ({optimised[0]:.0f} - {optimised[2]:.0f}) ms   "
            f"saved {exported[1] - optimised[1]:6.0f} ms"
        )


def row(name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Make the model and load it both ways: CPU times in ms, lowest, median and highest."""
    (folder / "files").mkdir(parents=True)
    file = folder / "files" / "model.onnx"
    made = encoder(arguments.depth // 10) if name == "fp32 encoder" else cnn(arguments.depth)
    file.write_bytes(made.SerializeToString())
    if name == "int8 CNN":
        quantize_static(file, file, Noise((32, 16, 16)), activation_type=QuantType.QUInt8, per_channel=True)
    saved = folder / "optimised.onnx"
    load(file, save=saved)
    times: dict[bool, list[float]] = {False: [], True: []}
    rng = np.random.default_rng(0)
    for _ in range(arguments.rounds + 1):
        for optimised in rng.permutation([False, True]).tolist():
            began = time.process_time()
            load(saved if optimised else file, optimised=optimised)
            times[optimised].append(1e3 * (time.process_time() - began))
    spread = {way: [round(f(t[1:]), 1) for f in (min, median, max)] for way, t in times.items()}  # the first warms up
    return {
        "model": name, "nodes": len(onnx.load(file).graph.node), "bytes": file.stat().st_size,
        "exported_ms": spread[False], "optimised_ms": spread[True],
    }  # fmt: skip


def load(file: Path, *, optimised: bool = False, save: Path | None = None) -> None:
    """A session as the endpoint makes it, from bytes, with one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if save:
        options.optimized_model_filepath = str(save)
    onnxruntime.InferenceSession(file.read_bytes(), options, providers=["CPUExecutionProvider"])


def cnn(depth: int, channels: int = 32) -> onnx.ModelProto:
    """3x3 convolutions with ReLU, every other one with a residual; input [-1, 32, 16, 16]."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for i in range(depth):
        kernel = rng.normal(size=(channels, channels, 3, 3)).astype(np.float32) / 12
        weights.append(numpy_helper.from_array(kernel, f"w{i}"))
        nodes.append(helper.make_node("Conv", [last, f"w{i}"], [f"c{i}"], name=f"conv{i}", pads=[1, 1, 1, 1]))
        summed = f"c{i}"
        if i % 2:
            summed = f"a{i}"
            nodes.append(helper.make_node("Add", [f"c{i}", last], [summed], name=f"add{i}"))
        nodes.append(helper.make_node("Relu", [summed], [f"r{i}"], name=f"relu{i}"))
        last = f"r{i}"
    return _model(nodes, weights, last, [-1, channels, 16, 16])


def encoder(blocks: int, width: int = 384) -> onnx.ModelProto:
    """Feed-forward blocks as in an encoder: LayerNorm, four times wider, GELU, back, residual; input [-1, 32, 384]."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for i in range(blocks):
        for name, shape in (("g", (width,)), ("u", (width, 4 * width)), ("d", (4 * width, width))):
            weights.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32) / 20, f"{name}{i}"))
        nodes += [
            helper.make_node("LayerNormalization", [last, f"g{i}"], [f"n{i}"], name=f"norm{i}"),
            helper.make_node("MatMul", [f"n{i}", f"u{i}"], [f"h{i}"], name=f"up{i}"),
            helper.make_node("Gelu", [f"h{i}"], [f"e{i}"], name=f"gelu{i}"),
            helper.make_node("MatMul", [f"e{i}", f"d{i}"], [f"o{i}"], name=f"down{i}"),
            helper.make_node("Add", [f"o{i}", last], [f"y{i}"], name=f"residual{i}"),
        ]
        last = f"y{i}"
    return _model(nodes, weights, last, [-1, 32, width])


def _model(nodes: list[Any], weights: list[Any], last: str, shape: list[int]) -> onnx.ModelProto:
    sizes: list[Any] = ["batch" if size < 0 else size for size in shape]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name in ("x", last)]
    graph = helper.make_graph(nodes, "made", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


if __name__ == "__main__":
    main()
