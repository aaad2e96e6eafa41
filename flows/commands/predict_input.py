"""Rows for a model from what a user has: JSON, CSV with a header, or numpy's files.

What an input of several dimensions takes may be given flat: as many values as its row has elements, in their order.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np

from model_registry.variant import TensorSpec
from serving.exceptions import InvalidRequest
from serving.tensors import NUMPY

_BY_SUFFIX = {".json": "json", ".csv": "csv", ".npy": "npy", ".npz": "npz"}
_TRUTH = {"true": True, "1": True, "false": False, "0": False}
Samples = dict[str, Any]
"""Values of all rows by input name: lists or arrays, the rows first."""


def form_of(content: bytes, suffix: str) -> str:
    """``json``, ``csv``, ``npy`` or ``npz``: by the file's suffix, else by how it begins."""
    if suffix.lower() in _BY_SUFFIX:
        return _BY_SUFFIX[suffix.lower()]
    if content.startswith(b"\x93NUMPY"):
        return "npy"
    if content.startswith(b"PK\x03\x04"):
        return "npz"
    return "json" if content.lstrip()[:1] in (b"{", b"[") else "csv"


def parsed_json(content: bytes) -> Any:
    """The JSON value; InvalidRequest where it is none."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"it is not valid JSON: {error}") from error


def is_request(value: Any) -> TypeGuard[dict[str, Any]]:
    """Whether a JSON value is a request of the Open Inference Protocol V2, and not a row."""
    tensors = value.get("inputs") if isinstance(value, dict) else None
    return isinstance(tensors, list) and any(isinstance(tensor, dict) and "datatype" in tensor for tensor in tensors)


def json_samples(value: Any, inputs: Sequence[TensorSpec]) -> Samples:
    """From a row or a list of rows: objects by input name, or just the values where there is one input.

    Raises:
        InvalidRequest: a row lacks an input, or there is none.
    """
    if isinstance(value, dict):
        value = [value]
    if value == []:
        raise InvalidRequest("it holds no row")
    if isinstance(value, list) and isinstance(value[0], dict):
        names = [spec.name for spec in inputs]
        for number, row in enumerate(value, 1):
            if not isinstance(row, dict) or set(row) != set(names):
                got = sorted(row) if isinstance(row, dict) else type(row).__name__
                raise InvalidRequest(f"row {number} must have the model's inputs {names}, got {got}")
        return {spec.name: [_nested(row[spec.name], spec) for row in value] for spec in inputs}
    only = _only(inputs)
    if _flat(value, only):
        return {only.name: [_nested(value, only)]}
    if isinstance(value, list) and all(_flat(row, only) for row in value):
        return {only.name: [_nested(row, only) for row in value]}
    return {only.name: [value] if _depth(value) == len(only.shape) - 1 else value}


def csv_samples(content: bytes, inputs: Sequence[TensorSpec]) -> Samples:
    """From CSV with a header: a column per input, or all columns in their order as the one input's rows.

    Raises:
        InvalidRequest: the columns are not the model's, or a field is no value; names its line and column.
    """
    try:
        lines = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        header, rows = next(lines, []), [(lines.line_num, row) for row in lines if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidRequest(f"it is not valid CSV in UTF-8: {error}") from error
    if not rows:
        raise InvalidRequest("it holds no row under its header")
    for line, row in rows:
        if len(row) != len(header):
            raise InvalidRequest(f"line {line} has {len(row)} fields, the header has {len(header)}")
    specs = {spec.name: spec for spec in inputs}
    columns = range(len(header))
    if sorted(header) == sorted(specs) and all(spec.shape[1:] in ((), (1,)) for spec in inputs):
        found = {}
        for at in columns:
            spec = specs[header[at]]
            values = [_value(row[at], spec, line, header[at]) for line, row in rows]
            found[spec.name] = [[value] for value in values] if spec.shape[1:] else values
        return found
    if len(inputs) == 1 and (len(inputs[0].shape) == 2 or _elements(inputs[0]) == len(header)):
        spec = inputs[0]
        table = [[_value(row[at], spec, line, header[at]) for at in columns] for line, row in rows]
        return {spec.name: [_nested(row, spec) for row in table]}
    wanted = {spec.name: list(spec.shape) for spec in inputs}
    raise InvalidRequest(f"the columns {header} are not the model's inputs {wanted}; send JSON or .npz instead")


def numpy_samples(content: bytes, inputs: Sequence[TensorSpec]) -> Samples:
    """From a .npy of the one input, rows or one row, or a .npz of arrays by input name.

    Raises:
        InvalidRequest: it is no such file, or holds Python objects.
    """
    try:
        found = np.load(io.BytesIO(content), allow_pickle=False)
        if isinstance(found, np.ndarray):
            only = _only(inputs)
            rows = _as_rows(found, only)
            return {only.name: rows[None] if rows.ndim == len(only.shape) - 1 else rows}
        specs = {spec.name: spec for spec in inputs}
        return {name: _as_rows(found[name], specs[name]) if name in specs else found[name] for name in found.files}
    except (ValueError, OSError, EOFError) as error:
        raise InvalidRequest(f"it is no file of numpy's arrays: {error}") from error


def _only(inputs: Sequence[TensorSpec]) -> TensorSpec:
    if len(inputs) != 1:
        raise InvalidRequest(f"the model has the inputs {[spec.name for spec in inputs]}; give rows by these names")
    return inputs[0]


def _elements(spec: TensorSpec) -> int:
    """Of a row that has several dimensions, all of known size; 0 for any other."""
    sizes = spec.shape[1:]
    return math.prod(sizes) if len(sizes) > 1 and min(sizes) > 0 else 0


def _flat(value: Any, spec: TensorSpec) -> bool:
    elements = _elements(spec)
    return (
        elements > 0
        and isinstance(value, list)
        and len(value) == elements
        and not any(isinstance(element, list) for element in value)
    )


def _nested(row: Any, spec: TensorSpec) -> Any:
    """A flat row as its dimensions say; any other as it is."""
    if _flat(row, spec):
        for size in reversed(spec.shape[2:]):
            row = [row[start : start + size] for start in range(0, len(row), size)]
    return row


def _as_rows(values: Any, spec: TensorSpec) -> Any:
    """An array of flat rows, or of one, as their dimensions say; any other as it is."""
    elements = _elements(spec)
    if elements and values.ndim in (1, 2) and values.shape[-1] == elements and values.shape != spec.shape[1:]:
        return values.reshape(-1, *spec.shape[1:])
    return values


def _depth(value: Any) -> int:
    depth = 0
    while isinstance(value, list) and value:
        value, depth = value[0], depth + 1
    return depth


def _value(text: str, spec: TensorSpec, line: int, column: str) -> Any:
    if spec.datatype == "BYTES":
        return text
    text = text.strip()
    if not text and spec.missing:
        return None
    kind = NUMPY[spec.datatype].kind
    try:
        return _TRUTH[text.lower()] if kind == "b" else float(text) if kind == "f" else int(text)
    except (ValueError, KeyError):
        hint = "" if text else ": the model was not trained with missing values"
        raise InvalidRequest(f"line {line}, column {column!r}: {text[:40]!r} is no {spec.datatype}{hint}") from None
