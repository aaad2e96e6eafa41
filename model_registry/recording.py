"""Recorded predictions: a few real inputs of a variant and what it answered when it was measured.

An endpoint that loads the variant must give the same answers before it takes traffic. Stored as
``recordings/<digest>.json``, so that any version that was ever registered can be promoted and checked.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from model_registry.manifest import FileEntry
from model_registry.store import ObjectMissing, Store
from model_registry.variant import Record, Variant

Array = NDArray[Any]
MAX_ROWS = 16
_MAX_ELEMENTS = 200_000  # they travel as JSON text, about 20 bytes each


class Recording(Record):
    """Where the recorded predictions of a variant lie; ``output`` names the graph output that was recorded."""

    digest: str
    output: str
    rows: int = Field(ge=1)
    batch: int = Field(default=1, ge=1)
    """Rows per request: a model may take an int8 scale from the whole batch it sees."""
    file: FileEntry


def record(store: Store, variant: Variant, inputs: Mapping[str, Array], outputs: Array, *, batch: int = 1) -> Recording:
    """Store the first rows of inputs (by name) and of the first output, as measured last.

    Args:
        inputs: arrays [N, ...] by input name; others than the variant's inputs are ignored.
        outputs: the variant's first output [N, ...] for these inputs.

    Raises:
        ValueError: an input is missing, or the arrays are not of equal length.
    """
    names = [spec.name for spec in variant.inputs]
    if missing := [name for name in names if name not in inputs]:
        raise ValueError(f"variant {variant.name!r} needs inputs {names}; the recording lacks {missing}")
    lengths = {len(outputs), *(len(inputs[name]) for name in names)}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"recorded inputs and outputs of {variant.name!r} differ in length or are empty: {lengths}")
    elements = sum(max(1, inputs[name][0].size) for name in names) + outputs[0].size
    rows = min(MAX_ROWS, max(1, _MAX_ELEMENTS // elements))
    rows = min(lengths.pop(), -(-rows // batch) * batch)  # whole batches, as they were measured
    stream = io.BytesIO()
    arrays = {f"input/{name}": inputs[name][:rows] for name in names} | {"output": outputs[:rows]}
    np.savez(stream, allow_pickle=False, **arrays)
    made = Recording(
        digest=variant.digest,
        output=variant.outputs[0].name,
        rows=rows,
        batch=batch,
        file=store.publish_bytes(stream.getvalue(), "recording.npz"),
    )
    store.write_record(_path(variant.digest), made.to_json())
    return made


def replay(store: Store, digest: str) -> tuple[Recording, dict[str, Array], Array]:
    """The recording of a variant with its inputs by name and its expected output.

    Raises:
        ObjectMissing: nothing was recorded for it, so no endpoint may take it.
    """
    data = store.read_record(_path(digest))
    if data is None:
        raise ObjectMissing(f"{store.uri} has no recorded predictions of {digest}; register it by a pipeline run first")
    recording = Recording.from_json(data)
    with np.load(io.BytesIO(store.fetch_bytes(recording.file)), allow_pickle=False) as archive:
        inputs = {name.removeprefix("input/"): archive[name] for name in archive.files if name.startswith("input/")}
        return recording, inputs, archive["output"]


def _path(digest: str) -> str:
    return f"recordings/{digest}.json"
