"""Means over all places of a picture get the name under which they have an int8 kernel, and no others do."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from tasks.quantize.pooled_means import name_means


def mean_of(shape: list[Any], axes: list[int], keep: int, *, as_attribute: bool = False) -> ModelProto:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    found = helper.make_empty_tensor_value_info("y")
    how: dict[str, Any] = {"keepdims": keep, **({"axes": axes} if as_attribute else {})}
    node = helper.make_node("ReduceMean", ["x"] if as_attribute else ["x", "a"], ["y"], **how)
    constants = [] if as_attribute else [numpy_helper.from_array(np.array(axes), "a")]
    graph = helper.make_graph([node], "g", [value], [found], constants)
    opset = helper.make_opsetid("", 13 if as_attribute else 20)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8)


@pytest.mark.parametrize(
    ("shape", "axes", "keep", "as_attribute"),
    [
        (["b", 3, 4, 5], [2, 3], 1, False),
        (["b", 3, 4, 5], [-1, -2], 0, False),
        (["b", 3, 7], [2], 1, True),
        (["b", 3, 7], [-1], 0, True),
    ],
)
def test_means_of_pictures_and_signals(shape: list[Any], axes: list[int], keep: int, as_attribute: bool) -> None:
    model = mean_of(shape, axes, keep, as_attribute=as_attribute)
    x = np.random.default_rng(0).random([2, *shape[1:]]).astype(np.float32)

    def answer() -> Any:
        return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]

    wanted = answer()
    assert name_means(model) == 1
    assert [node.op_type for node in model.graph.node] == ["GlobalAveragePool"] + ["Flatten"] * (not keep)
    assert answer().shape == wanted.shape and np.allclose(answer(), wanted, rtol=1e-6)


@pytest.mark.parametrize(("shape", "axes"), [(["b", 3, 4, 5], [1, 2, 3]), (["b", 3, 4, 5], [3]), (["b", 6], [1])])
def test_other_means_stay(shape: list[Any], axes: list[int]) -> None:
    model = mean_of(shape, axes, 1)
    before = model.SerializeToString()
    assert name_means(model) == 0 and model.SerializeToString() == before
