"""Rounding to few bits so that a layer's answers move least, not its weights: what one weight loses others make up for.

Frantar et al. 2023, "GPTQ" (arXiv:2210.17323), algorithm 1, with a scale for each block of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, helper

from model_registry.decoder_form import DecoderForm
from tasks.quantize.decoder_weights import decoder_products
from tasks.quantize.weight_only import round_blocks

_DAMPING = 0.01
"""Of the mean of the diagonal, added to it: inputs that hardly vary would make the inverse explode."""


def input_products(
    model: ModelProto, form: DecoderForm, tokens: NDArray[np.int64]
) -> Mapping[str, NDArray[np.float64]]:
    """What each product of a decoder is asked: the sum of x x' over all places [K, K], by the name of its weight.

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
    found = dict[str, NDArray[np.float64]]()
    for row in tokens:
        values = session.run(tensors, form.feeds(row[None], wanted=1))
        for name, value in zip(tensors, values, strict=True):
            flat = value.reshape(-1, value.shape[-1]).astype(np.float32)
            found[name] = found.get(name, 0.0) + (flat.T @ flat).astype(np.float64)
    return {weight: found[name] for weight, name in asked.items()}


def round_by_answers(
    matrix: NDArray[Any], products: NDArray[np.float64], block: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Integers -8 to 7 [N, K] and scales [N, K / block] of rows [N, K].

    Args:
        products: of the inputs, from :func:`input_products`.
    """
    rows = matrix.astype(np.float32).copy()
    count, length = rows.shape
    inverse = _inverse(products)
    numbers, scales = np.zeros((count, length), np.int8), np.zeros((count, length // block), np.float32)
    for start in range(0, length, block):
        end = start + block
        part = rows[:, start:end]
        _, found = round_blocks(np.ascontiguousarray(part.T), block)
        scale = found[0][:, None]
        scales[:, start // block] = found[0]
        errors = np.zeros_like(part)
        for column in range(block):
            at = start + column
            value = part[:, column]
            rounded = np.clip(np.rint(value / scale[:, 0]), -8, 7)
            numbers[:, at] = rounded
            errors[:, column] = (value - rounded * scale[:, 0]) / inverse[at, at]
            part[:, column + 1 :] -= np.outer(errors[:, column], inverse[at, at + 1 : end])
        rows[:, end:] -= errors @ inverse[start:end, end:]
    return numbers, scales


def _inverse(products: NDArray[np.float64]) -> NDArray[np.float32]:
    """The upper Cholesky factor of the inverse."""
    damped = products.copy()
    unused = np.diag(damped) == 0
    damped[unused, unused] = 1.0
    damped[np.diag_indices_from(damped)] += _DAMPING * np.diag(damped).mean()
    upper: NDArray[np.float32] = np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)
    return upper
