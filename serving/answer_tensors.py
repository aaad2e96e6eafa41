"""The tensors of an answer, read back from its body."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import orjson

from serving.tensors import NUMPY, Array, MalformedTensor, bytes_array, from_raw


def answer_tensors(body: bytes | memoryview, json_bytes: int) -> dict[str, Array]:
    """Outputs by name; those that are in no form we know are left out.

    Args:
        body: not packed.
        json_bytes: of its JSON part, behind which raw tensors follow; -1: all of it is JSON.
    """
    view = memoryview(body)
    at = json_bytes if json_bytes >= 0 else len(view)
    found: dict[str, Array] = {}
    for output in orjson.loads(view[:at])["outputs"]:
        size = (output.get("parameters") or {}).get("binary_data_size")
        with suppress(MalformedTensor, ValueError, KeyError):
            found[output["name"]] = _of_json(output) if size is None else _of_raw(output, view[at : at + size])
        at += size or 0
    return found


def _of_raw(output: dict[str, Any], data: memoryview) -> Array:
    return from_raw(data, output["datatype"], tuple(output["shape"]))


def _of_json(output: dict[str, Any]) -> Array:
    datatype, shape, data = output["datatype"], tuple(output["shape"]), output["data"]
    if datatype == "BYTES":
        return bytes_array([text.encode() for text in data], shape)
    dtype = NUMPY[datatype]
    if dtype.kind == "f":  # where JSON has null
        data = [float("nan") if value is None else value for value in data]
    return np.array(data, dtype=dtype).reshape(shape)
