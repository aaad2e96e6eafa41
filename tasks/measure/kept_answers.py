"""Which answers of a measurement are stored."""

from __future__ import annotations

from model_registry.recording import MAX_ROWS
from tasks.evidence.arrays import Array

_MOST_BYTES = 8 << 20
"""Of the answers that are stored with a measurement: with a class for each pixel they are as large as the data."""


def kept_answers(outputs: Array, batch: int) -> Array:
    """All of them, or of large ones the first, in whole batches, as many as a release records."""
    rows = max(MAX_ROWS, _MOST_BYTES // max(1, outputs[:1].nbytes))
    return outputs[: -(-rows // batch) * batch]
