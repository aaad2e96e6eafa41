"""fp16: half the bytes, for accelerators. CPUs mostly compute it in fp32, with casts around: smaller, not faster."""

from __future__ import annotations

import importlib
import sys

import onnxruntime
from onnx import GraphProto, ModelProto, NodeProto
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, RuntimeException
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NotImplemented_


def to_half(model: ModelProto) -> ModelProto:
    """A copy in fp16 whose inputs and outputs stay fp32; so do operators without an fp16 form."""
    # The package appends its own folder to sys.path, where its `metrics` and `models` would shadow a user's.
    path = sys.path[:]
    try:
        float16 = importlib.import_module("onnxruntime.transformers.float16")
    finally:
        sys.path[:] = path
    half = ModelProto()
    half.CopyFrom(model)
    converted: ModelProto = float16.convert_float_to_float16(half, keep_io_types=True)
    del converted.graph.value_info[:]
    _sort(converted.graph)
    return converted


def _sort(graph: GraphProto) -> None:
    """The converter leaves the casts of inputs and outputs at the end: put each node after what it reads."""
    waiting = [NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    missing = {name for node in waiting for name in node.output if name}
    ordered: list[NodeProto] = []
    while waiting:
        ready = [node for node in waiting if not missing.intersection(_reads(node))]
        if not ready:
            break  # a cycle: the checker will say so
        ordered += ready
        missing -= {name for node in ready for name in node.output}
        waiting = [node for node in waiting if missing.intersection(node.output)]
    del graph.node[:]
    graph.node.extend([*ordered, *waiting])


def _reads(node: NodeProto) -> set[str]:
    return {*node.input, *(name for a in node.attribute for inner in a.g.node for name in _reads(inner))}


def why_it_does_not_load(file: bytes) -> str:
    """What ONNX Runtime has against the file on this CPU; '' if it loads. Converters miss a cast now and then."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except (Fail, InvalidGraph, NotImplemented_, RuntimeException) as error:
        return f"ONNX Runtime cannot load the model in fp16: {str(error).strip().splitlines()[-1]}"
    return ""
