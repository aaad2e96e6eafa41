"""One table of datatypes: what ONNX, ONNX Runtime, torch and the endpoint call them follows from it."""

from __future__ import annotations

from typing import get_args

import numpy as np
import onnxruntime
import pytest
from onnx import helper

from model_registry.datatypes import NUMPY_NAMES, Datatype
from model_registry.variant import TensorSpec
from serving.tensors import NUMPY, ONNX, datatype_of
from tasks.onnx_models.onnx_graph import signature
from tasks.torch_models.torch_variant import made_up_inputs


def test_every_datatype_has_its_row() -> None:
    assert tuple(NUMPY_NAMES) == get_args(Datatype)


@pytest.mark.parametrize("datatype", get_args(Datatype))
def test_everybody_agrees(datatype: Datatype) -> None:
    number = helper.np_dtype_to_tensor_dtype(np.dtype(NUMPY_NAMES[datatype]))
    ends = [helper.make_tensor_value_info(name, number, [2]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    assert signature(model)[0][0].datatype == datatype
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert ONNX[session.get_inputs()[0].type] == datatype
    rows = np.array([b"a", b"b"], dtype=object) if datatype == "BYTES" else np.ones(2, NUMPY[datatype])
    assert datatype_of(rows) == datatype
    if datatype != "BYTES":
        (made,) = made_up_inputs((TensorSpec(name="x", datatype=datatype, shape=(-1, 2)),)).values()
        assert made.numpy().dtype == NUMPY[datatype]
