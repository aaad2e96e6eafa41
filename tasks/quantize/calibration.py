"""Calibration rows: a small sample of its own split, spread evenly over the classes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader

from tasks.running.errors import CalibrationError

MINIMUM_ROWS = 16
_BATCH = MINIMUM_ROWS

Feeds = dict[str, NDArray[Any]]
"""Raw inputs by name, rows first."""


def choose_rows(targets: NDArray[Any], count: int, *, stratify: bool, seed: int) -> NDArray[np.int64]:
    """Sorted numbers of at most ``count`` rows, drawn from all classes as evenly as the split allows.

    They come to whole batches of 16, as ONNX Runtime's histograms want.

    Raises:
        CalibrationError: the split has fewer than 16 rows.
    """
    total = len(targets)
    if total < MINIMUM_ROWS:
        raise CalibrationError(
            f"the calibration split has {total} rows; at least {MINIMUM_ROWS} are needed to see the range of the "
            "activations, 200 to 500 are better: give it more data, or use quantize.methods [dynamic]",
            rows=total,
        )
    order = np.random.default_rng(seed).permutation(total)
    if stratify and np.issubdtype(targets.dtype, np.integer):
        # Take the first of each class, then the second of each, and so on.
        _, classes = np.unique(targets[order].reshape(total, -1)[:, 0], return_inverse=True)
        turn = np.empty(total, dtype=np.int64)
        for label in range(int(classes.max()) + 1):
            mine = np.flatnonzero(classes == label)
            turn[mine] = np.arange(len(mine))
        order = order[np.argsort(turn, kind="stable")]
    count = min(count, total) // _BATCH * _BATCH
    rows: NDArray[np.int64] = np.sort(order[:count]).astype(np.int64)
    return rows


def check_finite(answers: NDArray[Any], rows: NDArray[np.int64]) -> None:
    """Refuse rows that the model answers with NaN or infinity: one would spoil the range of every activation.

    A model may well take NaN (filled inside the graph), so it is the answers that tell.

    Args:
        answers: [N, ...], the fp32 model's.
        rows: their numbers in the calibration split, for the message.

    Raises:
        CalibrationError: names the first rows.
    """
    bad = rows[~np.isfinite(answers.reshape(len(answers), -1)).all(axis=1)]
    if len(bad):
        raise CalibrationError(
            f"the fp32 model answers NaN or infinity for {len(bad)} of the {len(answers)} calibration rows, first rows "
            f"{bad[:5].tolist()} of the split; look for NaN and extreme values there",
            rows=bad.tolist(),
        )


class RowReader(CalibrationDataReader):  # type: ignore[misc]  # untyped library
    """Feeds the rows to ONNX Runtime's calibration, 16 at a time; can be read again after :meth:`rewind`."""

    def __init__(self, feeds: Feeds) -> None:
        self.feeds = feeds
        self.rows = len(next(iter(feeds.values())))
        self.rewind()

    def rewind(self) -> None:
        self._next = 0

    def get_next(self) -> Feeds | None:
        start = self._next
        self._next = start + _BATCH
        return {n: v[start : self._next] for n, v in self.feeds.items()} if start < self.rows else None
