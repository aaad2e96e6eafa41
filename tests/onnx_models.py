"""Small ONNX variants for the serving tests, written with the onnx package and no training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from model_registry.manifest import describe_folder
from model_registry.store import Store
from model_registry.variant import RuntimeSpec, TensorSpec, Variant

IMAGE = TensorSpec(name="image", datatype="FP32", shape=(-1, 1, 8, 8))


def constant(name: str, value: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value), name)


def save(
    folder: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    initializers: Sequence[onnx.TensorProto] = (),
    *,
    labels: list[str] | None = None,
    missing: list[str] | None = None,
    runtime: RuntimeSpec | None = None,
    name: str = "test",
) -> Variant:
    """Write model.onnx (and assets) into the folder; the variant that describes them."""
    graph = helper.make_graph(list(nodes), name, [_info(s) for s in inputs], [_info(s) for s in outputs], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    for asset, value in (("labels", labels), ("missing", missing)):
        if value is not None:
            (folder / "assets").mkdir(exist_ok=True)
            (folder / "assets" / f"{asset}.json").write_text(json.dumps(value))
    return Variant(
        name=name,
        stage="export",
        format="onnx",
        files=describe_folder(folder),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        runtime=runtime or RuntimeSpec(),
    )


def hungry(folder: Path, *, gigabytes: int = 8) -> Variant:
    """A file of 300 bytes that asks for so much memory as soon as it is loaded."""
    x, y = (TensorSpec(name=name, datatype="FP32", shape=(-1, 2)) for name in "xy")
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["large"], value=helper.make_tensor("v", 1, [1], [0.5])),
        helper.make_node("ReduceMean", ["large"], ["mean"], keepdims=0),
        helper.make_node("Add", ["x", "mean"], ["y"]),
    ]
    return save(folder, nodes, [x], [y], [constant("size", np.array([gigabytes << 28]))])


def digits(folder: Path, *, seed: int = 0, bias: float = 0.0, runtime: RuntimeSpec | None = None) -> Variant:
    """A 64-32-10 classifier of 8x8 images with labels "0" to "9", random weights, ``bias`` added to every logit."""
    rng = np.random.default_rng(seed)
    weights = [
        constant("w1", rng.normal(size=(64, 32)).astype(np.float32) / 16),
        constant("b1", rng.normal(size=32).astype(np.float32)),
        constant("w2", rng.normal(size=(32, 10)).astype(np.float32)),
        constant("b2", (rng.normal(size=10) + bias).astype(np.float32)),
    ]
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w1", "b1"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("Gemm", ["active", "w2", "b2"], ["logits"]),
    ]
    logits = TensorSpec(name="logits", datatype="FP32", shape=(-1, 10))
    return save(
        folder, nodes, [IMAGE], [logits], weights, labels=[str(i) for i in range(10)], runtime=runtime, name="digits"
    )


def answer(folder: Path, number: float, *, x: str = "x", y: str = "y", width: int = 2) -> Variant:
    """Takes ``x`` FP32 [-1, 2] and answers ``y`` FP32 [-1, 2] = 0 * x + number: tells which version answered."""
    nodes = [helper.make_node("Mul", [x, "zero"], ["nothing"]), helper.make_node("Add", ["nothing", "n"], [y])]
    weights = [constant("zero", np.float32(0)), constant("n", np.float32(number))]
    given, answered = (TensorSpec(name=name, datatype="FP32", shape=(-1, width)) for name in (x, y))
    return save(folder, nodes, [given], [answered], weights, name="answer")


def wide(folder: Path, numbers: int) -> Variant:
    """Takes ``x`` FP32 [-1, 2] and answers ``y`` FP32 [-1, 2], by way of ``numbers`` random weights."""
    rng = np.random.default_rng(0)
    weights = [
        constant("a", rng.random((2, numbers // 4), np.float32)),
        constant("b", rng.random((numbers // 4, 2), np.float32)),
    ]
    nodes = [helper.make_node("MatMul", ["x", "a"], ["many"]), helper.make_node("MatMul", ["many", "b"], ["y"])]
    x, y = (TensorSpec(name=name, datatype="FP32", shape=(-1, 2)) for name in ("x", "y"))
    return save(folder, nodes, [x], [y], weights, name="wide")


def log(folder: Path) -> Variant:
    """Takes ``x`` FP32 [-1] and answers its logarithm: NaN below zero, -Inf at zero."""
    x, y = (TensorSpec(name=name, datatype="FP32", shape=(-1,)) for name in ("x", "y"))
    return save(folder, [helper.make_node("Log", ["x"], ["y"])], [x], [y], name="log")


def filled(folder: Path, missing: list[str] | None = None) -> Variant:
    """Takes ``x`` FP32 [-1] and answers it with 7 in the place of NaN; ``missing`` as in the variant's asset."""
    x, y = (TensorSpec(name=name, datatype="FP32", shape=(-1,)) for name in ("x", "y"))
    nodes = [helper.make_node("IsNaN", ["x"], ["gap"]), helper.make_node("Where", ["gap", "seven", "x"], ["y"])]
    return save(folder, nodes, [x], [y], [constant("seven", np.float32(7))], missing=missing, name="filled")


def identities(folder: Path) -> Variant:
    """One input per datatype, ``in_FP32`` and so on [-1], each copied to ``out_FP32`` and so on."""
    kinds: dict[Any, int] = {
        "BOOL": TensorProto.BOOL,
        "UINT8": TensorProto.UINT8,
        "INT32": TensorProto.INT32,
        "INT64": TensorProto.INT64,
        "FP16": TensorProto.FLOAT16,
        "FP64": TensorProto.DOUBLE,
        "BYTES": TensorProto.STRING,
    }
    inputs = [TensorSpec(name=f"in_{kind}", datatype=kind, shape=(-1,)) for kind in kinds]
    outputs = [TensorSpec(name=f"out_{kind}", datatype=kind, shape=(-1,)) for kind in kinds]
    nodes = [helper.make_node("Identity", [f"in_{kind}"], [f"out_{kind}"]) for kind in kinds]
    return save(folder, nodes, inputs, outputs, name="identities")


def slow(folder: Path, steps: int | None = None) -> Variant:
    """Takes ``x`` FP32 [-1, 2] and multiplies 64x64 matrices ``steps`` times before it answers ``y`` = x.

    Without a number here, each request says its own: input ``steps`` INT64 [1].
    """
    rng = np.random.default_rng(0)
    matrix = (rng.normal(size=(64, 64)) / 8).astype(np.float32)
    state = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [64, 64]) for n in ("before", "after")]
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["condition"], ["again"]),
            helper.make_node("MatMul", ["before", "matrix"], ["product"]),
            helper.make_node("Tanh", ["product"], ["after"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
            state[0],
        ],
        [helper.make_tensor_value_info("again", TensorProto.BOOL, []), state[1]],
    )
    nodes = [
        helper.make_node("Loop", ["steps", "yes", "matrix"], ["last"], body=body),
        helper.make_node("ReduceSum", ["last"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
        helper.make_node("Add", ["x", "nothing"], ["y"]),
    ]
    weights = [
        constant("yes", np.bool_(True)),
        constant("matrix", matrix),
        constant("zero", np.float32(0)),
    ]
    x, y = (TensorSpec(name=name, datatype="FP32", shape=(-1, 2)) for name in ("x", "y"))
    if steps is None:
        return save(
            folder, nodes, [x, TensorSpec(name="steps", datatype="INT64", shape=(1,))], [y], weights, name="slow"
        )
    return save(folder, nodes, [x], [y], [*weights, constant("steps", np.int64(steps))], name="slow")


def publish(store: Store, folder: Path, variant: Variant) -> Variant:
    """Put the variant's files and manifest into the store."""
    store.publish_folder(folder)
    store.save_variant(variant)
    return variant


def numbered(store: Store, folder: Path, number: int) -> Variant:
    """A published model whose every answer is its number."""
    return publish(store, folder / str(number), answer(folder / str(number), number))


def _info(spec: TensorSpec) -> onnx.ValueInfoProto:
    kinds = {"FP16": "FLOAT16", "FP32": "FLOAT", "FP64": "DOUBLE", "BYTES": "STRING"}
    kind = TensorProto.DataType.Value(kinds.get(spec.datatype, spec.datatype))
    shape = [f"{spec.name}_{i}" if size == -1 else size for i, size in enumerate(spec.shape)]
    return helper.make_tensor_value_info(spec.name, kind, shape)
