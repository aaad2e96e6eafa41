"""Tensor datatypes of the Open Inference Protocol V2, and their raw form.

Raw form (binary tensor extension): little-endian, row-major, no padding; BOOL is one byte; a BYTES element is a
uint32 length followed by that many bytes. BYTES tensors are numpy object arrays of ``bytes``.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from model_registry.datatypes import NUMPY_NAMES

Array = npt.NDArray[Any]

NUMPY: dict[str, np.dtype[Any]] = {name: np.dtype(dtype).newbyteorder("<") for name, dtype in NUMPY_NAMES.items()}
DATATYPES = {dtype: name for name, dtype in NUMPY.items()}
_OTHERWISE = {"float32": "float", "float64": "double", "object": "string"}
ONNX = {f"tensor({_OTHERWISE.get(dtype, dtype)})": name for name, dtype in NUMPY_NAMES.items()}
"""ONNX Runtime's type names; what is missing here (sequences, maps, bfloat16) cannot be served."""

_LENGTH = struct.Struct("<I")


class MalformedTensor(Exception):
    """The raw bytes are not those of a tensor of the given datatype and shape."""


def datatype_of(array: Array) -> str:
    """The protocol's name of the array's dtype; KeyError for one the protocol does not have."""
    return DATATYPES[array.dtype]


def to_raw(array: Array) -> bytes:
    """The array's elements in raw form."""
    if array.dtype != NUMPY["BYTES"]:
        return np.ascontiguousarray(array).tobytes()
    return b"".join(_LENGTH.pack(len(element)) + element for element in array.ravel())


def from_raw(raw: memoryview, datatype: str, shape: tuple[int, ...]) -> Array:
    """The tensor in these bytes; a view of them where it can be (then read-only).

    Raises:
        MalformedTensor: the number of bytes is not exactly that of the shape.
    """
    count = math.prod(shape)
    dtype = NUMPY[datatype]
    if datatype != "BYTES":
        if len(raw) != count * dtype.itemsize:
            raise MalformedTensor(f"{datatype} {list(shape)} takes {count * dtype.itemsize} bytes, got {len(raw)}")
        return np.frombuffer(raw, dtype=dtype).reshape(shape)
    elements: list[bytes] = []
    position = 0
    while position + _LENGTH.size <= len(raw):
        (length,) = _LENGTH.unpack_from(raw, position)
        position += _LENGTH.size
        elements.append(bytes(raw[position : position + length]))
        position += length
    if position != len(raw) or len(elements) != count:
        raise MalformedTensor(f"BYTES {list(shape)} takes {count} elements, got {len(elements)} in {len(raw)} bytes")
    return bytes_array(elements, shape)


def bytes_array(elements: list[bytes], shape: tuple[int, ...]) -> Array:
    """A BYTES tensor; numpy's own conversion would cut trailing zero bytes."""
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array.reshape(shape)
