"""Rows for a model from what a user has: JSON, CSV with a header, or numpy's files."""

from __future__ import annotations

import csv
import io
import json
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
        return {name: [row[name] for row in value] for name in names}
    only = _only(inputs)
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
    if len(inputs) == 1 and len(inputs[0].shape) == 2:
        spec = inputs[0]
        return {spec.name: [[_value(row[at], spec, line, header[at]) for at in columns] for line, row in rows]}
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
            return {only.name: found[None] if found.ndim == len(only.shape) - 1 else found}
        return {name: found[name] for name in found.files}
    except (ValueError, OSError, EOFError) as error:
        raise InvalidRequest(f"it is no file of numpy's arrays: {error}") from error


def _only(inputs: Sequence[TensorSpec]) -> TensorSpec:
    if len(inputs) != 1:
        raise InvalidRequest(f"the model has the inputs {[spec.name for spec in inputs]}; give rows by these names")
    return inputs[0]


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
