"""The form that nearly every client sends, read quickly: one input, flat data, no parameters.

It takes nothing that :func:`serving.protocol.parse_request` would refuse, and gives the same for what it takes;
whatever is different in any way it leaves alone, so that every refusal keeps its text. Long lists of numbers go
straight from the text into an array (simdjson) instead of becoming Python objects first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
import simdjson

from model_registry.variant import TensorSpec
from serving.limits import RequestLimits
from serving.protocol import InferRequest, all_finite
from serving.tensors import NUMPY, Array

_MEMBERS = {"name", "shape", "datatype", "data"}
_ALONE = ({"inputs"}, {"inputs", "id"})
_FLOATS = ({float}, {int}, {int, float})
_INTEGERS = ({int},)
_LONG = 2048
"""Bytes from which on simdjson is worth its two passes."""


class QuickReader:
    """Reads requests for a model of one input with a batch dimension; ``None`` where it does not know better."""

    def __init__(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], limits: RequestLimits) -> None:
        self._limits = limits
        self._parser = simdjson.Parser()
        self._outputs = tuple(spec.name for spec in outputs)
        spec = inputs[0] if len(inputs) == 1 else None
        halves = any(output.datatype == "FP16" for output in outputs)
        fits = spec is not None and spec.shape[:1] == (-1,) and -1 not in spec.shape[1:] and not halves
        self._spec = spec if fits and spec is not None and NUMPY[spec.datatype].kind in "fiu" else None
        if self._spec is None or self._spec.datatype == "FP16":
            self._spec = None
            return
        self._dtype = NUMPY[self._spec.datatype]
        self._tail = list(self._spec.shape[1:])
        self._per_row = math.prod(self._tail)
        widths = [math.prod(max(size, 1) for size in output.shape[1:]) for output in outputs]
        self._most_rows = limits.elements // max(self._per_row, *widths, 1)

    def __call__(self, body: bytes | memoryview) -> InferRequest | None:
        """The request in an unpacked body that is JSON alone."""
        if self._spec is None:
            return None
        return self._long(bytes(body)) if len(body) > _LONG else self._short(body)

    def _short(self, body: bytes | memoryview) -> InferRequest | None:
        spec = self._spec
        assert spec is not None
        try:
            request = orjson.loads(body)
            (tensor,) = request["inputs"]
            shape, data = tensor["shape"], tensor["data"]
            identity = request.get("id")
            kinds = set(map(type, data))
            if (
                tensor.keys() != _MEMBERS
                or request.keys() not in _ALONE
                or not self._known(tensor["name"], tensor["datatype"], shape, identity)
                or type(data) is not list
                or len(data) != shape[0] * self._per_row
                or kinds not in (_FLOATS if self._dtype.kind == "f" else _INTEGERS)
            ):
                return None
            with np.errstate(over="ignore"):  # found just below
                array = np.array(data, self._dtype).reshape(shape)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError):
            return None
        return self._request(array, identity)

    def _long(self, body: bytes) -> InferRequest | None:
        if body.count(b"[") != 3:  # inputs, shape, data: nested data is checked level by level elsewhere
            return None
        try:
            document: Any = self._parser.parse(body)
            names = list(document.keys())
            inputs = document["inputs"]
            if len(names) != len(set(names)) or set(names) not in _ALONE or len(inputs) != 1:
                return None
            tensor = inputs[0]
            members = list(tensor.keys())
            if len(members) != 4 or set(members) != _MEMBERS:
                return None
            identity = document["id"] if "id" in names else None
            shape = tensor["shape"].as_list()
            if not self._known(tensor["name"], tensor["datatype"], shape, identity):
                return None
            array = self._numbers(tensor["data"])
            if array is None or len(array) != shape[0] * self._per_row:
                return None
            return self._request(array.reshape(shape), identity)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RuntimeError):
            return None

    def _numbers(self, data: Any) -> Array | None:
        """The list as an array of the input's type; None where a number does not fit it."""
        if self._dtype.kind == "f":
            found = np.frombuffer(data.as_buffer(of_type="d"), np.float64)
            with np.errstate(over="ignore"):  # found by whoever asks for finite numbers
                return found.astype(self._dtype, copy=False)
        unsigned = self._dtype.kind == "u"
        found = np.frombuffer(data.as_buffer(of_type="u" if unsigned else "i"), np.uint64 if unsigned else np.int64)
        cast = found.astype(self._dtype)
        return cast if np.array_equal(cast, found) else None

    def _known(self, name: Any, datatype: Any, shape: Any, identity: Any) -> bool:
        spec = self._spec
        assert spec is not None
        return (
            name == spec.name
            and datatype == spec.datatype
            and type(shape) is list
            and set(map(type, shape)) == {int}
            and shape[1:] == self._tail
            and 0 < shape[0] <= self._most_rows
            and (identity is None or (type(identity) is str and len(identity) <= self._limits.id_characters))
        )

    def _request(self, array: Array, identity: str | None) -> InferRequest | None:
        spec = self._spec
        assert spec is not None
        if array.dtype.kind == "f" and not all_finite(array):
            return None
        return InferRequest({spec.name: array}, self._outputs, identity, rows=len(array))
