"""What a circuit is sent for a row, and what ONNX Runtime answers to that."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto
from onnx.utils import Extractor

from tasks.onnx_models.graph_as_run import runtime_options, runtime_session
from tasks.onnx_models.integer_network import IntegerNetwork

Array = NDArray[Any]


def to_codes(model: ModelProto, network: IntegerNetwork, rows: Array) -> Array:
    """The bytes that the circuit is sent for raw rows: what the graph does before its first layer."""
    name = model.graph.input[0].name
    if network.codes == name:
        return rows
    session = _session(_part(model, [name], [network.codes], codes_signed=network.signed))
    codes: Array = session.run(None, {name: rows})[0]
    return codes


def behind_codes(model: ModelProto, network: IntegerNetwork, codes: Array) -> Array:
    """What ONNX Runtime answers to these bytes, [rows, outputs]."""
    session = _session(_part(model, [network.codes], [model.graph.output[0].name], codes_signed=network.signed))
    parts = [session.run(None, {network.codes: codes[n : n + 1024]})[0] for n in range(0, len(codes), 1024)]
    return np.concatenate(parts).reshape(len(codes), -1)


def _part(model: ModelProto, inputs: list[str], outputs: list[str], *, codes_signed: bool) -> ModelProto:
    known = ModelProto()
    known.CopyFrom(model)
    there = {value.name for value in (*model.graph.input, *model.graph.output)}
    for name in {*inputs, *outputs} - there:  # bytes, of any shape
        signed = onnx.TensorProto.INT8 if codes_signed else onnx.TensorProto.UINT8
        known.graph.value_info.append(onnx.helper.make_tensor_value_info(name, signed, None))
    return Extractor(known).extract_model(inputs, outputs)


def _session(model: ModelProto) -> Any:
    return runtime_session(model.SerializeToString(), runtime_options())
