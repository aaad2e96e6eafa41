"""Rounding to few bits so that a layer's answers move least, not its weights: what one weight loses others make up for.

Frantar et al. 2023, "GPTQ" (arXiv:2210.17323), algorithm 1, with a scale for each block of a row or for the row.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from model_registry.decoder_form import DecoderForm
from tasks.onnx_models.block_rows import pack_rows4
from tasks.quantize.decoder_weights import Grid, Rounded, round_to_nearest
from tasks.quantize.product_inputs import watch_inputs
from tasks.quantize.weight_only import round_blocks

_DAMPING = 0.01
"""Of the mean of the diagonal, added to it: inputs that hardly vary would make the inverse explode."""
_TOGETHER = 64
"""Columns of a row with one scale whose losses reach those behind them at once, as one product."""
_INVERSES = 4
"""Kept, for weights that are rounded to several grids in a row: they take longer than the rounding."""


def input_products(
    model: ModelProto, form: DecoderForm, tokens: NDArray[np.int64]
) -> Mapping[str, NDArray[np.float64]]:
    """What each product of a decoder is asked: the sum of x x' over all places [K, K], by the name of its weight.

    Args:
        tokens: rows [N, length], run one by one.
    """
    found = dict[str, NDArray[np.float64]]()

    def add(name: str, values: NDArray[Any]) -> None:
        flat = values.astype(np.float32)
        found[name] = found.get(name, 0.0) + (flat.T @ flat).astype(np.float64)

    asked = watch_inputs(model, form, tokens, add)
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
        _, (scale,) = round_blocks(left[start : start + block], block)
        scales[start // block] = scale
        numbers[start : start + block] = _round_part(left, inverse, start, start + block, scale, (-8, 7))
    return np.ascontiguousarray(numbers.T), np.ascontiguousarray(scales.T)


def round_rows_by_answers(
    matrix: NDArray[Any], inverse: NDArray[np.float32], most: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Integers from -most to most [N, K] and scales [N] of rows [N, K], each with one scale.

    Args:
        inverse: of what is asked, from :func:`inverse_root`.
    """
    left = matrix.T.astype(np.float32, order="C")
    scale = np.abs(left).max(axis=0) / most
    scale[scale == 0] = 1
    numbers = np.zeros(left.shape, np.int8)
    for start in range(0, len(left), _TOGETHER):
        end = min(start + _TOGETHER, len(left))
        numbers[start:end] = _round_part(left, inverse, start, end, scale, (-most, most))
    return np.ascontiguousarray(numbers.T), scale


def _round_part(
    left: NDArray[np.float32],
    inverse: NDArray[np.float32],
    start: int,
    end: int,
    scale: NDArray[np.float32],
    limits: tuple[int, int],
) -> NDArray[np.float32]:
    """Numbers [end - start, N] of some columns; those behind them, in ``left`` [K, N], make up for what is lost."""
    part = left[start:end]
    numbers, errors = np.zeros_like(part), np.zeros_like(part)
    for number in range(end - start):
        at = start + number
        rounded = np.clip(np.rint(part[number] / scale), *limits)
        numbers[number] = rounded
        errors[number] = (part[number] - rounded * scale) / inverse[at, at]
        part[number + 1 :] -= np.outer(inverse[at, at + 1 : end], errors[number])
    left[end:] -= inverse[start:end, end:].T @ errors
    return numbers


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
