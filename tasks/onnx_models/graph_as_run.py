"""The graph that ONNX Runtime makes of a file."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
from onnx import ModelProto


def as_run(file: bytes, folder: Path) -> ModelProto:
    """The graph as ONNX Runtime runs it, with its int8 kernels in the places where it has them.

    Without what depends on the processor's own layouts, which moves values and changes none.
    """
    written = folder / "as-run.onnx"
    options = runtime_options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(written)
    runtime_session(file, options)
    model = onnx.load_model(written)
    written.unlink()
    return model


def runtime_options() -> onnxruntime.SessionOptions:
    """One thread, and no warnings."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options


def runtime_session(file: bytes, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    """On the CPU."""
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
