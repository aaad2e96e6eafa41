"""The same graph with its constants folded, in standard operators: it runs on every machine as before."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
from onnx import ModelProto

from tasks.onnx_graph import signature, strip


def fold(file: bytes, folder: Path) -> bytes | None:
    """What ONNX Runtime's basic level makes of the file; None where that is the same file or no longer portable.

    Args:
        folder: for a file meanwhile.
    """
    written = folder / "folded.onnx"
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(written)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    before, after = onnx.load_from_string(file), onnx.load_model(written)
    if _domains(after) - _domains(before) or signature(after) != signature(before):
        return None
    folded = strip(after, merge_equal=True)
    return None if folded == strip(before, merge_equal=True) else folded


def quantized(file: bytes) -> bool:
    """Whether the graph computes with integers."""
    return any("Quantize" in n.op_type or "Integer" in n.op_type for n in onnx.load_from_string(file).graph.node)


def _domains(model: ModelProto) -> set[str]:
    return {node.domain.removeprefix("ai.onnx") for node in model.graph.node}
