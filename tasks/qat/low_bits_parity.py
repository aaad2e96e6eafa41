"""The gate between training and ONNX Runtime for decoders of 4 bits: the file must foretell as what was trained.

The file that serves rounds activations to int8 inside its products (accuracy level 4), which was not trained and moves
every answer a little; so the same bytes are asked with activations in fp32, where only the order of sums may differ.
"""

from __future__ import annotations

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import ModelProto

from model_registry.decoder_form import DecoderForm, score_tokens
from tasks.running.errors import QatParityFailed
from tasks.workloads.causal_decoder import CausalDecoder

_ALLOWED = 1e-3
"""Of log-probabilities up to 1; larger ones in proportion. Rounding of sums gives 1e-5 in small decoders."""


def check_low_bits(model: CausalDecoder, file: ModelProto, form: DecoderForm, tokens: NDArray[np.int64]) -> float:
    """The largest difference between the log-probabilities of the model, in evaluation, and of its file.

    Args:
        tokens: real rows [N, length].

    Raises:
        QatParityFailed: it is more than rounding explains.
    """
    exact = ModelProto()
    exact.CopyFrom(file)
    for node in exact.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 0
    answers = small_scores(exact.SerializeToString(), form, tokens)
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


def small_scores(file: bytes, form: DecoderForm, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """Log-probabilities [N, length - 1] of tokens by a file as it is, all threads."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return score_tokens(lambda names, feeds: session.run(list(names), dict(feeds)), form, tokens)
