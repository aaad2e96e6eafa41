"""What the products of a decoder are asked while it reads rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, helper

from model_registry.decoder_form import DecoderForm
from tasks.quantize.decoder_weights import decoder_products

Told = Callable[[str, NDArray[Any]], None]
"""Of a tensor by its name, its values [places, K] in a row."""


def watch_inputs(model: ModelProto, form: DecoderForm, tokens: NDArray[np.int64], tell: Told) -> dict[str, str]:
    """Tell of every tensor that a product is asked, row by row; the tensors' names by those of the weights.

    Args:
        tokens: rows [N, length], run one by one.
    """
    asked = {name: node.input[0] for name, node in decoder_products(model).items()}
    watched = ModelProto()
    watched.CopyFrom(model)
    known = {output.name for output in watched.graph.output}
    tensors = sorted({*asked.values()} - known)
    watched.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in tensors)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for row in tokens:
        for name, value in zip(tensors, session.run(tensors, form.feeds(row[None], wanted=1)), strict=True):
            tell(name, value.reshape(-1, value.shape[-1]))
    return asked
