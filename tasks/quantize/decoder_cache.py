"""Keys and values of a decoder in int8: a quarter of the memory that a text takes while it is continued.

Each channel of each head has a scale from the calibration rows, of keys as they are kept, turned by their places.
ONNX Runtime's attention rounds what a token adds and multiplies with the small numbers (domain com.microsoft,
ContribOperators.md: GroupQueryAttention, ``k_quant_type``). Prompts are rounded as steps are, so what is judged on
whole rows is what is served.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from model_registry.decoder_form import DecoderForm

_ATTENTION = "GroupQueryAttention"
_PAST_KEY, _KEY_SCALE = 3, 12
"""Where the past keys and their scales are among the operator's inputs; those of values follow each."""


def channel_scales(model: ModelProto, form: DecoderForm, tokens: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
    """Scales [kv_heads * head_size] by the name of the past that they are for: a 127th of the largest value.

    Args:
        model: with keys and values in fp32. ``tokens``: calibration rows [N, length].
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    largest = dict.fromkeys(form.past, np.zeros(form.kv_heads * form.head_size, np.float32))
    for row in tokens:
        present = session.run(list(form.present), form.feeds(row[None], wanted=1))
        for name, values in zip(form.past, present, strict=True):
            largest[name] = np.maximum(largest[name], np.abs(values[0]).max(axis=1).reshape(-1))
    return {name: np.where(most > 0, most / 127, 1).astype(np.float32) for name, most in largest.items()}


def shrink_cache(
    model: ModelProto, form: DecoderForm, scales: Mapping[str, NDArray[np.float32]]
) -> tuple[ModelProto, DecoderForm]:
    """The decoder with keys and values in int8, and what goes with it; the model is not changed.

    Args:
        scales: as :func:`channel_scales` gives them.
    """
    result = ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    for node in graph.node:
        if node.op_type != _ATTENTION:
            continue
        names = [f"{past}.scales" for past in node.input[_PAST_KEY : _PAST_KEY + 2]]
        node.input.extend([""] * (_KEY_SCALE - len(node.input)) + names)
        for name in names:
            graph.initializer.append(numpy_helper.from_array(scales[name.removesuffix(".scales")], name))
        quantized = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
        node.attribute.extend(helper.make_attribute(key, value) for key, value in quantized.items())
    kept = {*form.past, *form.present}
    for value in (*graph.input, *graph.output):
        if value.name in kept:
            value.type.tensor_type.elem_type = TensorProto.INT8
    return result, form.model_copy(update={"kv_cache": "int8"})
