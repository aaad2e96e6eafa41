"""ONNX Runtime's own word on a single node, and on every row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import NodeProto

from model_registry.variant import Variant
from tasks.onnx_models.graph_as_run import runtime_options, runtime_session

_STANDARD = 21
"""Opset of a single node's model."""


def ask_runtime(node: NodeProto, *inputs: NDArray[Any] | None, **attributes: Any) -> list[NDArray[Any]]:
    """What the node answers to these inputs.

    Args:
        inputs: in order; None for those left out.
        attributes: instead of the node's own.
    """
    given = [None if value is None else np.asarray(value) for value in inputs]
    names = ["" if value is None else f"i{n}" for n, value in enumerate(given)]
    alone = NodeProto(op_type=node.op_type, domain=node.domain, input=names, output=["o"])
    alone.attribute.extend(a for a in node.attribute if a.name not in attributes)
    alone.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in attributes.items())
    fed = {name: value for name, value in zip(names, given, strict=True) if value is not None}
    tensors = [
        onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for n, v in fed.items()
    ]
    graph = onnx.helper.make_graph([alone], "node", tensors, [onnx.helper.make_empty_tensor_value_info("o")])
    opsets = [onnx.helper.make_opsetid("", _STANDARD), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return list(runtime_session(model.SerializeToString(), runtime_options()).run(None, fed))


def runtime_answers(file: bytes, variant: Variant, inputs: Sequence[NDArray[Any]], *, batch: int) -> list[NDArray[Any]]:
    """Every output of the variant to every row, run as it is served.

    Args:
        inputs: in the variant's order, each [rows, ...].
        batch: rows that are asked about together.
    """
    runtime = variant.runtime
    options = runtime_options()
    options.intra_op_num_threads = runtime.intra_op_threads
    options.graph_optimization_level = _LEVELS[runtime.graph_optimization]
    session = onnxruntime.InferenceSession(
        file, options, providers=[runtime.provider], disabled_optimizers=list(runtime.disabled_optimizers)
    )
    names = [spec.name for spec in variant.inputs]
    parts = [
        session.run(None, {name: values[start : start + batch] for name, values in zip(names, inputs, strict=True)})
        for start in range(0, len(inputs[0]), batch)
    ]
    return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]


_LEVELS = {
    "disabled": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
