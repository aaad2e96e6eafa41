"""The form that nearly every client sends, read quickly: one input, and either flat JSON data or one raw tensor.

It takes nothing that :func:`serving.protocol.parse_request` would refuse, and gives the same for what it takes;
whatever is different in any way it leaves alone, so that every refusal keeps its text. Numbers become one array for all
requests of a frame; long lists of them go straight from the text into an array (simdjson) instead of becoming Python
objects first; and the JSON part of a binary request that was read before is looked up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson
import simdjson

from model_registry.variant import TensorSpec
from serving.exceptions import ServingError
from serving.limits import RequestLimits
from serving.protocol import all_finite, parse_request
from serving.tensors import NUMPY, Array

_MEMBERS = {"name", "shape", "datatype", "data"}
_ALONE = ({"inputs"}, {"inputs", "id"})
_FLOATS = ({float}, {int}, {int, float})
_INTEGERS = ({int},)
_LONG = 2048
"""Bytes from which on simdjson is worth its two passes."""
_MOST_HEADS, _LONGEST_HEAD = 1024, 2048


class QuickRequest(NamedTuple):
    """A request whose numbers are not an array yet: ``elements`` of ``rows`` rows, flat."""

    rows: int
    elements: list[Any] | Array
    outputs: tuple[str, ...]
    id: str | None
    binary: frozenset[str]
    timeout: int


class QuickReader:
    """Reads requests for a model of one input with a batch dimension; ``None`` where it does not know better."""

    def __init__(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], limits: RequestLimits) -> None:
        self._inputs, self._output_specs, self._limits = inputs, outputs, limits
        self._parser = simdjson.Parser()
        self._outputs = tuple(spec.name for spec in outputs)
        self._heads: dict[bytes, QuickRequest] = {}
        spec = inputs[0] if len(inputs) == 1 else None
        fits = spec is not None and spec.shape[:1] == (-1,) and -1 not in spec.shape[1:]
        self.spec = spec if fits and spec is not None and NUMPY[spec.datatype].kind in "fiu" else None
        """Of the input; None where nothing can be read quickly."""
        if self.spec is None:
            return
        self._dtype = NUMPY[self.spec.datatype]
        self._json = self.spec.datatype != "FP16" and all(output.datatype != "FP16" for output in outputs)
        self._kinds = _FLOATS if self._dtype.kind == "f" else _INTEGERS
        self._tail = list(self.spec.shape[1:])
        self._per_row = math.prod(self._tail)
        widths = [math.prod(max(size, 1) for size in output.shape[1:]) for output in outputs]
        self._most_rows = limits.elements // max(self._per_row, *widths, 1)

    def __call__(self, body: bytes | memoryview, json_bytes: int = -1) -> QuickRequest | None:
        """The request in an unpacked body; ``json_bytes`` as in :func:`parse_request`."""
        if self.spec is None or json_bytes == 0:
            return None
        if json_bytes > 0:
            return self._binary(body, json_bytes)
        if not self._json:
            return None
        return self._long(bytes(body)) if len(body) > _LONG else self._short(body)

    def array(self, requests: Sequence[QuickRequest]) -> Array | None:
        """All their rows, [N, ...]; None where a number does not fit the input, and each is to be read strictly."""
        try:
            joined = self._joined([request.elements for request in requests])
        except OverflowError:
            return None
        if self._dtype.kind == "f" and not all_finite(joined):
            return None
        return joined.reshape((-1, *self._tail))

    def _joined(self, parts: Sequence[list[Any] | Array]) -> Array:
        flat, dtype = list[Any](), self._dtype
        for part in parts:
            if not isinstance(part, list):
                break
            flat += part
        else:
            with np.errstate(over="ignore"):  # found by whoever asks for finite numbers
                return np.array(flat, dtype)
        arrays = [np.asarray(part, dtype) for part in parts]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)

    def _short(self, body: bytes | memoryview) -> QuickRequest | None:
        try:
            request = orjson.loads(body)
            (tensor,) = request["inputs"]
            shape, data = tensor["shape"], tensor["data"]
            identity = request.get("id")
            if (
                tensor.keys() == _MEMBERS
                and request.keys() in _ALONE
                and type(data) is list
                and self._known(tensor["name"], tensor["datatype"], shape, identity)
                and len(data) == shape[0] * self._per_row
                and set(map(type, data)) in self._kinds
            ):
                return QuickRequest(shape[0], data, self._outputs, identity, frozenset(), 0)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError):
            pass
        return None

    def _long(self, body: bytes) -> QuickRequest | None:
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
            return QuickRequest(shape[0], array, self._outputs, identity, frozenset(), 0)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RuntimeError):
            return None

    def _numbers(self, data: Any) -> Array | None:
        """The list as an array of the input's type; None where a number does not fit it."""
        if self._dtype.kind == "f":
            found = np.frombuffer(data.as_buffer(of_type="d"), np.float64)
            with np.errstate(over="ignore"):  # found when the rows become one array
                return found.astype(self._dtype, copy=False)
        unsigned = self._dtype.kind == "u"
        found = np.frombuffer(data.as_buffer(of_type="u" if unsigned else "i"), np.uint64 if unsigned else np.int64)
        cast = found.astype(self._dtype)
        return cast if np.array_equal(cast, found) else None

    def _binary(self, body: bytes | memoryview, json_bytes: int) -> QuickRequest | None:
        """One raw tensor behind a JSON part: that is parsed once, whatever the numbers are."""
        view = memoryview(body)
        head = bytes(view[:json_bytes])
        known = self._heads.get(head)
        if known is None:
            known = self._read_head(head, view)
        if known is None or len(view) - json_bytes != known.rows * self._per_row * self._dtype.itemsize:
            return None
        return known._replace(elements=np.frombuffer(view[json_bytes:], self._dtype))

    def _read_head(self, head: bytes, view: memoryview) -> QuickRequest | None:
        assert self.spec is not None
        if len(head) > _LONGEST_HEAD:
            return None
        try:
            read = parse_request(view, self._inputs, self._output_specs, self._limits, len(head))
        except ServingError:  # told by whoever reads it strictly
            return None
        if b"binary_data_size" not in head or len(view) == len(head) or read.wishes is not None:
            return None
        known = QuickRequest(read.rows, [], read.outputs, read.id, read.binary, read.timeout)
        if len(self._heads) >= _MOST_HEADS:
            self._heads.clear()
        self._heads[head] = known
        return known

    def _known(self, name: Any, datatype: Any, shape: Any, identity: Any) -> bool:
        assert self.spec is not None
        return (
            name == self.spec.name
            and datatype == self.spec.datatype
            and type(shape) is list
            and set(map(type, shape)) == {int}
            and shape[1:] == self._tail
            and 0 < shape[0] <= self._most_rows
            and (identity is None or (type(identity) is str and len(identity) <= self._limits.id_characters))
        )
