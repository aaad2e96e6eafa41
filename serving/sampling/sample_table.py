"""Sampled requests as a Parquet file: a row for each, tensors as lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from model_registry.variant import TensorSpec
from serving.answer_tensors import answer_tensors
from serving.engines.engine_frames import PLAIN
from serving.engines.packed_body import unpacked_body
from serving.limits import RequestLimits
from serving.protocol import parse_request
from serving.sampling.sample_frames import Sample, SampledBody
from serving.tensors import NUMPY, Array

_PACKING = 0x0F
_LIMITS = RequestLimits()


class SampleRow(NamedTuple):
    """A sample as it was understood; ``inputs`` and ``outputs`` by name, without those that were not asked for."""

    time: float
    id: str | None
    inputs: dict[str, Array]
    outputs: dict[str, Array]


def read_sample(sample: Sample) -> SampleRow:
    """Its tensors. Raises ServingError where they are not what the endpoint takes, ValueError where not JSON."""
    specs = [TensorSpec.model_validate(spec) for spec in sample.inputs]
    outputs = [TensorSpec.model_validate(spec) for spec in sample.outputs]
    request = parse_request(_plain(sample.request), specs, outputs, _LIMITS, json_bytes=sample.request.json_bytes)
    answer = answer_tensors(_plain(sample.answer), sample.answer.json_bytes)
    return SampleRow(sample.time, request.id, request.inputs, answer)


def write_samples(like: Sample, rows: Sequence[SampleRow]) -> bytes:
    """A Parquet file of samples of one version.

    Columns: ``time`` (UTC), ``version``, ``id`` (the request's, or null), and for each input and output its elements,
    row by row, and its shape: ``input/x``, ``input_shape/x``, ``output/y``, ``output_shape/y``; null for an output that
    was not asked for. BYTES are binary.

    Args:
        like: a sample with the version and the specs of all rows.
    """
    columns: dict[str, Any] = {
        "time": pa.array([int(1e6 * row.time) for row in rows], pa.timestamp("us", tz="UTC")),
        "version": pa.array([like.version] * len(rows), pa.string()),
        "id": pa.array([row.id for row in rows], pa.string()),
    }
    for spec in like.inputs:
        columns |= _tensor("input", spec, [row.inputs.get(spec["name"]) for row in rows])
    for spec in like.outputs:
        columns |= _tensor("output", spec, [row.outputs.get(spec["name"]) for row in rows])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    written: bytes = sink.getvalue().to_pybytes()
    return written


def _plain(sent: SampledBody) -> bytes:
    packing = sent.packing & _PACKING
    return sent.body if packing == PLAIN else unpacked_body(sent.body, packing, _LIMITS)


def _tensor(role: str, spec: dict[str, Any], found: Sequence[Array | None]) -> dict[str, Any]:
    datatype = spec["datatype"]
    kind = pa.binary() if datatype == "BYTES" else pa.from_numpy_dtype(NUMPY[datatype])
    flat = [None if array is None else array.ravel() for array in found]
    lists = [None if array is None else array.tolist() for array in flat] if datatype == "BYTES" else flat
    shapes = [None if array is None else array.shape for array in found]
    return {
        f"{role}/{spec['name']}": pa.array(lists, pa.list_(kind)),
        f"{role}_shape/{spec['name']}": pa.array(shapes, pa.list_(pa.int64())),
    }
