"""Rows of small weights as MatMulNBits and GatherBlockQuantized take them: 8 or 4 bits, and a scale for each block."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def round_rows8(matrix: NDArray[Any], block: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Rows [N, K] as bytes around 128 [N, K / block, block] and a scale for each block [N, K / block]."""
    split = matrix.reshape(len(matrix), -1, block)
    scales = np.abs(split).max(axis=2) / np.float32(127)
    scales = np.where(scales > 0, scales, np.float32(1)).astype(np.float32)
    numbers = np.rint(split / scales[..., None]) + 128
    return numbers.astype(np.uint8), scales


def pack_rows4(values: NDArray[np.int8], scales: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Integers [N, K] as halves of bytes around 8, the first in the low half [N, K / block, block / 2]; the scales."""
    numbers = (values.reshape(*scales.shape, -1) + 8).astype(np.uint8)
    packed: NDArray[np.uint8] = (numbers[..., 0::2] | (numbers[..., 1::2] << 4)).astype(np.uint8)
    return packed, scales


def unpack_rows(packed: NDArray[np.uint8], bits: int) -> NDArray[np.int16]:
    """The integers [N, K] of packed rows [N, K / block, bytes of a block]: -8 to 7 of 4 bits, -128 to 127 of 8."""
    if bits == 4:
        packed = np.stack([packed & 15, packed >> 4], axis=-1)
    rows: NDArray[np.int16] = packed.reshape(len(packed), -1).astype(np.int16) - (1 << bits - 1)
    return rows
