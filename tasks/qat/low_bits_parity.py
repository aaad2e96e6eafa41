"""The gate between training and ONNX Runtime for decoders of 4 bits: the file must foretell as what was trained.

The file that serves rounds activations to int8 inside its products (accuracy level 4), and keys and values where they
are kept so, which was not trained and moves every answer a little; so the same weights are asked with all of that in
fp32, where only the order of sums may differ.
"""

from __future__ import annotations

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from model_registry.decoder_form import DecoderForm, score_tokens
from tasks.running.errors import QatParityFailed
from tasks.workloads.causal_decoder import CausalDecoder

_ROUNDING = ("accuracy_level", "k_quant_type", "v_quant_type", "kv_cache_bit_width")
"""Attributes of MatMulNBits and GroupQueryAttention (ContribOperators.md) that have it round what is no weight."""
_CACHE_SCALES = 12
"""Where the scales of keys and values begin among the inputs of GroupQueryAttention."""
_ALLOWED = 1e-3
"""Of log-probabilities up to 1; larger ones in proportion. Rounding of sums gives 1e-5 in small decoders."""


def check_low_bits(model: CausalDecoder, file: ModelProto, form: DecoderForm, tokens: NDArray[np.int64]) -> float:
    """The largest difference between the log-probabilities of the model, in evaluation, and of its file.

    Args:
        tokens: real rows [N, length].

    Raises:
        QatParityFailed: it is more than rounding explains.
    """
    floats = form.model_copy(update={"kv_cache": "float32"})
    answers = small_scores(_exact(file, form).SerializeToString(), floats, tokens)
    with torch.no_grad():
        trained = model(torch.from_numpy(tokens)).numpy()
    apart = np.abs(trained - answers)
    beyond = int(np.sum(~(apart <= _ALLOWED * np.maximum(1.0, np.abs(answers))).all(axis=1)))  # so that NaN is beyond
    largest = float(np.nan_to_num(apart.max(), nan=np.inf))
    if beyond:
        raise QatParityFailed(
            f"of {len(tokens)} validation rows the decoder's file foretells {beyond} otherwise than the model that is "
            f"trained (by {largest:.3g} nats at most; allowed are {_ALLOWED:g} of a score): it is not the file of this "
            "model, or ONNX Runtime does not compute its operators as their description says. Do without qat here",
            rows=len(tokens),
            beyond=beyond,
        )
    return largest


def _exact(file: ModelProto, form: DecoderForm) -> ModelProto:
    """The file with nothing rounded but its weights."""
    result = ModelProto()
    result.CopyFrom(file)
    for node in result.graph.node:
        kept = [attribute for attribute in node.attribute if attribute.name not in _ROUNDING]
        del node.attribute[:]
        node.attribute.extend(kept)
        if node.op_type == "GroupQueryAttention":
            del node.input[_CACHE_SCALES:]
    cached = {*form.past, *form.present}
    for value in (*result.graph.input, *result.graph.output):
        if value.name in cached:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    return result


def small_scores(file: bytes, form: DecoderForm, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """Log-probabilities [N, length - 1] of tokens by a file as it is, all threads."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return score_tokens(lambda names, feeds: session.run(list(names), dict(feeds)), form, tokens)
