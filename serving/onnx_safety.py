"""Checks an ONNX file before ONNX Runtime sees it, reading only the protobuf wire format (no ``onnx`` package).

External data has been patched again and again (onnx CVE-2022-25882, 2024-27318, 2026-27489, hard links and symlinks;
ONNX Runtime #26776, sparse tensors #28408, and #28709: a marker in the location field that reads arbitrary memory).
Our files are single by contract, so any tensor that points outside its file is refused, wherever it hides:
initialisers, sparse initialisers, attributes, subgraphs, functions, training graphs.
"""

from __future__ import annotations

from collections.abc import Iterator

MAX_DEPTH = 64

# message -> field number -> message of that field (onnx.proto3). TensorProto ends the walk.
_FIELDS: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "TensorProto": {},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # fields of TensorProto
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf wire types


class UnsafeModel(Exception):
    """The ONNX file is malformed, or reads data from outside itself. Export it again as a single file."""


def check_onnx(data: bytes) -> None:
    """Refuse a file that is no ONNX model, or in which any tensor refers to data outside the file.

    Raises:
        UnsafeModel: says what was found.
    """
    view = memoryview(data)
    if not any(number == 7 and wire == _BYTES for number, wire, _ in _fields(view)):
        raise UnsafeModel("the file holds no ONNX graph; export the model again")
    stack: list[tuple[memoryview, str, int]] = [(view, "ModelProto", 0)]
    while stack:
        message, kind, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise UnsafeModel(f"the ONNX graph is nested deeper than {MAX_DEPTH} levels; flatten it")
        children = _FIELDS[kind]
        for number, wire, value in _fields(message):
            if kind == "TensorProto" and (
                number == _EXTERNAL_DATA or (number == _DATA_LOCATION and not (wire == _VARINT and value == 0))
            ):
                raise UnsafeModel(
                    "a tensor of the ONNX file keeps its data outside the file; "
                    "export again with external_data=False (one file)"
                )
            if number in children:
                if not isinstance(value, memoryview):
                    raise UnsafeModel(f"malformed ONNX file: field {number} of {kind} is not a message")
                stack.append((value, children[number], depth + 1))


def _fields(message: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """Field number, wire type and value of each field of one message."""
    position, end = 0, len(message)
    while position < end:
        tag, position = _varint(message, position)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, position = _varint(message, position)
            yield number, wire, value
            continue
        if wire == _BYTES:
            size, position = _varint(message, position)
        elif wire == _FIXED64:
            size = 8
        elif wire == _FIXED32:
            size = 4
        else:
            raise UnsafeModel(f"malformed ONNX file: wire type {wire}")
        if position + size > end:
            raise UnsafeModel("malformed ONNX file: it ends in the middle of a field")
        yield number, wire, message[position : position + size]
        position += size


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(message) or shift > 63:
            raise UnsafeModel("malformed ONNX file: broken varint")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
