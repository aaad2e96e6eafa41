"""Rounding to few bits so that a layer's answers move least, not its weights: what one weight loses others make up for.

Frantar et al. 2023, "GPTQ" (arXiv:2210.17323), algorithm 1, with a scale for each block of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, helper

from model_registry.decoder_form import DecoderForm
from tasks.onnx_models.block_rows import pack_rows4
from tasks.quantize.decoder_weights import Grid, Rounded, decoder_products, round_to_nearest
from tasks.quantize.weight_only import round_blocks

_DAMPING = 0.01
"""Of the mean of the diagonal, added to it: inputs that hardly vary would make the inverse explode."""
_INVERSES = 4
"""Kept, for weights that are rounded to several grids in a row: they take longer than the rounding."""


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


def by_answers(products: Mapping[str, NDArray[np.float64]]) -> Rounded:
    """Rounds weights of 4 bits by :func:`round_by_answers` where their inputs are known, and others to the nearest.

    Args:
        products: by the name of the weight, from :func:`input_products`.
    """

    @lru_cache(maxsize=_INVERSES)
    def inverse(name: str) -> NDArray[np.float32]:
        return inverse_root(products[name])

    def rounded(name: str, matrix: NDArray[Any], grid: Grid) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        if grid.bits == 8 or name not in products:
            return round_to_nearest(name, matrix, grid)
        return pack_rows4(*round_by_answers(matrix, inverse(name), grid.block))

    return rounded


def round_by_answers(
    matrix: NDArray[Any], inverse: NDArray[np.float32], block: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Integers -8 to 7 [N, K] and scales [N, K / block] of rows [N, K].

    Args:
        inverse: of what is asked, from :func:`inverse_root`.
    """
    left = matrix.T.astype(np.float32, order="C")  # of a weight those of all rows lie side by side
    length, count = left.shape
    numbers, scales = np.zeros((length, count), np.int8), np.zeros((length // block, count), np.float32)
    for start in range(0, length, block):
        end = start + block
        part = left[start:end]
        _, (scale,) = round_blocks(part, block)
        scales[start // block] = scale
        errors = np.zeros_like(part)
        for number in range(block):
            at = start + number
            rounded = np.clip(np.rint(part[number] / scale), -8, 7)
            numbers[at] = rounded
            errors[number] = (part[number] - rounded * scale) / inverse[at, at]
            part[number + 1 :] -= np.outer(inverse[at, at + 1 : end], errors[number])
        left[end:] -= inverse[start:end, end:].T @ errors
    return np.ascontiguousarray(numbers.T), np.ascontiguousarray(scales.T)


def moved_answers(wrong: NDArray[Any], products: NDArray[np.float64] | None) -> float:
    """By how much a layer's answers move, as a sum of squares over all places.

    Args:
        wrong: what its rows [N, K] are off by.
        products: of its inputs, from :func:`input_products`; None where rows are looked up one by one.
    """
    wrong = wrong.astype(np.float32)
    asked = wrong if products is None else wrong @ products.astype(np.float32)
    return float(np.vdot(asked, wrong))


def inverse_root(products: NDArray[np.float64]) -> NDArray[np.float32]:
    """The upper Cholesky factor [K, K] of the inverse of products from :func:`input_products`."""
    damped = products.copy()
    unused = np.diag(damped) == 0
    damped[unused, unused] = 1.0
    damped[np.diag_indices_from(damped)] += _DAMPING * np.diag(damped).mean()
    upper: NDArray[np.float32] = np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)
    return upper
