"""The Open Inference Protocol V2: requests to tensors, tensors to answers, in JSON and in its binary extension.

Everything about a request is checked against the model's tensor specs before an array is made; products of shapes
are Python ints and cannot overflow. Unknown members are ignored, as the protocol's extensions require; parameters are
honoured or refused by name, for one that is passed over silently gives another answer than was asked for.

JSON has no form for FP16 (nor does the protocol give it one), so FP16 tensors go in binary. NaN and infinities in
outputs become ``null`` in JSON: the answer stays valid for every reader. In inputs ``null``, or NaN in binary, stands
for a missing value, where the model was trained with some.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import orjson

from model_registry.variant import TensorSpec
from serving.exceptions import InvalidRequest, Unsupported
from serving.json_body import read_object, shown
from serving.limits import RequestLimits
from serving.tensors import NUMPY, Array, MalformedTensor, bytes_array, datatype_of, from_raw, to_raw
from serving.wishes import WISHES, Wishes, wishes_of_parameters

_INTEGERS = {name for name, dtype in NUMPY.items() if dtype.kind in "iu"}
_ACCEPTED: dict[str, tuple[set[type], str]] = {
    "BOOL": ({bool}, "true or false"),
    "BYTES": ({str}, "strings"),
    "FP32": ({int, float}, "numbers"),
    "FP64": ({int, float}, "numbers"),
    **{name: ({int}, "integers") for name in _INTEGERS},
}


_HARMLESS: dict[str, tuple[object, ...]] = {
    "priority": (0,),
    "content_type": ("np", "str"),
    "sequence_id": (0, ""),
    "sequence_start": (False,),
    "sequence_end": (False,),
}
"""Parameters that are not offered, and the values with which they ask for nothing."""


class InferRequest(NamedTuple):
    """A checked request.

    ``inputs``: tensors that fit the model; ``outputs``: wanted, in order, those in ``binary`` in raw form; ``id``: to
    be echoed; ``timeout``: microseconds after which nobody waits for the answer, 0 for no such time; ``rows``: of the
    batch, 0 where no input has one; ``wishes``: what it wants of its variant, None for nothing.
    """

    inputs: dict[str, Array]
    outputs: tuple[str, ...]
    id: str | None = None
    binary: frozenset[str] = frozenset()
    timeout: int = 0
    rows: int = 0
    wishes: Wishes | None = None


def parse_request(
    body: bytes | memoryview,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    limits: RequestLimits,
    json_bytes: int = -1,
) -> InferRequest:
    """Read an inference request for a model with these inputs and outputs.

    Args:
        json_bytes: of the body's JSON part, behind which raw tensors follow; -1: all of it is JSON, 0: it is the one
            input's raw tensor.

    Raises:
        InvalidRequest: the text names the member, its value, the rule and what to send instead.
        Unsupported: it asks for something that is not offered, or for JSON that cannot be.
    """
    if json_bytes == 0:
        return _raw_request(memoryview(body), inputs, outputs, limits)
    if json_bytes > len(body):
        raise InvalidRequest(
            f"inference-header-content-length is {json_bytes}, but the body has {len(body)} bytes; it must be the "
            "length of the JSON part"
        )
    view = memoryview(body)
    raws = _RawTensors(view[json_bytes:] if json_bytes > 0 else view[:0], binary=json_bytes > 0)
    request = read_object(view[:json_bytes] if json_bytes > 0 else body)
    identity = request.get("id")
    if identity is not None and not isinstance(identity, str):
        raise InvalidRequest(f"id must be a string, got {shown(identity)}")
    if identity is not None and len(identity) > limits.id_characters:
        raise InvalidRequest(f"id has {len(identity)} characters; at most {limits.id_characters} are echoed")
    parameters = _parameters(request, "the request", {"timeout", "binary_data_output", *WISHES})
    timeout = _whole(parameters.get("timeout", 0), "parameter 'timeout' (microseconds)")
    wishes = wishes_of_parameters(parameters) if WISHES & parameters.keys() else None
    specs = {spec.name: spec for spec in inputs}
    tensors = _named(request.get("inputs"), "inputs", specs)
    if missing := [spec.name for spec in inputs if spec.name not in tensors]:
        raise InvalidRequest(f"input {missing[0]!r} is missing; the model takes {[spec.name for spec in inputs]}")
    # In the order in which they were sent: raw tensors follow each other in it.
    arrays = {name: _tensor(tensor, specs[name], limits, raws) for name, tensor in tensors.items()}
    raws.end()
    batches = {spec.name: arrays[spec.name].shape[0] for spec in inputs if spec.shape[:1] == (-1,)}
    if len(set(batches.values())) > 1:
        raise InvalidRequest(f"inputs must agree in their first dimension, the batch; got {batches}")
    rows = next(iter(batches.values()), 0)
    wanted, binary = _wanted(request.get("outputs"), outputs, parameters.get("binary_data_output", False))
    _bound_outputs(wanted, rows, limits)
    names = tuple(spec.name for spec in wanted)
    return InferRequest(arrays, names, identity, binary=binary, timeout=timeout, rows=rows, wishes=wishes)


def answer(
    model: str,
    version: str,
    outputs: Mapping[str, Array],
    identity: str | None,
    binary: frozenset[str] = frozenset(),
) -> tuple[bytes, int]:
    """The answer of an inference: outputs in order, flat and row-major; and the length of its JSON part.

    Args:
        binary: outputs that follow the JSON part in raw form.

    Returns:
        The body, and the bytes of its JSON part, or -1 where it is nothing else.

    Raises:
        Unsupported: an output is FP16, and is wanted in JSON.
    """
    body: dict[str, Any] = {"model_name": model, "model_version": version}
    if identity is not None:
        body["id"] = identity
    raws = [to_raw(array) for name, array in outputs.items() if name in binary]
    sizes = iter(map(len, raws))
    body["outputs"] = [
        _raw_output(name, array, next(sizes)) if name in binary else _output(name, array)
        for name, array in outputs.items()
    ]
    head = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join([head, *raws]), len(head)) if raws else (head, -1)


def _named(value: Any, member: str, specs: Mapping[str, TensorSpec]) -> dict[str, dict[str, Any]]:
    """The tensors of a list, by name: each an object, known to the model, and there once."""
    if not isinstance(value, list):
        raise InvalidRequest(f"{member} must be a list of tensors, got {shown(value)}")
    found: dict[str, dict[str, Any]] = {}
    for tensor in value:
        if not isinstance(tensor, dict):
            raise InvalidRequest(f"each of {member} must be an object with a name, got {shown(tensor)}")
        name = tensor.get("name")
        if not isinstance(name, str):
            raise InvalidRequest(f"the name of each of {member} must be a string, got {shown(name)}")
        if name not in specs:
            raise InvalidRequest(f"the model has no {member[:-1]} {shown(name)}; it has {list(specs)}")
        if name in found:
            raise InvalidRequest(f"{member[:-1]} {name!r} is given twice")
        tensor["parameters"] = _parameters(tensor, f"{member[:-1]} {name!r}", _OFFERED[member])
        found[name] = tensor
    return found


_OFFERED = {"inputs": {"binary_data_size"}, "outputs": {"binary_data"}}


def _parameters(holder: dict[str, Any], where: str, offered: set[str]) -> dict[str, Any]:
    """Those of a request or tensor, all of which are offered.

    Raises:
        InvalidRequest: one is no scalar.
        Unsupported: one asks for what is not offered.
    """
    parameters = holder.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InvalidRequest(f"parameters of {where} must be an object, got {shown(parameters)}")
    for name, value in parameters.items():
        if not isinstance(value, str | int | float):  # bool is an int
            raise InvalidRequest(
                f"parameter {shown(name)} of {where} must be a string, number or boolean, got {shown(value)}"
            )
        if name not in offered and value not in _HARMLESS.get(name, ()):
            raise Unsupported(f"parameter {shown(name)} of {where} is not offered here; leave it out")
    return parameters


def _whole(value: Any, what: str) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise InvalidRequest(f"{what} must be a whole number of at least 0, got {shown(value)}")
    return value


def _switch(value: Any, what: str) -> bool:
    if type(value) is not bool:
        raise InvalidRequest(f"{what} must be true or false, got {shown(value)}")
    return value


class _RawTensors:
    """The raw tensors behind a request's JSON part, taken one after the other."""

    def __init__(self, data: memoryview, *, binary: bool) -> None:
        self._data, self._binary, self._at = data, binary, 0

    def take(self, size: int, where: str) -> memoryview:
        if not self._binary:
            raise InvalidRequest(
                f"{where} has binary_data_size, but the request has no header inference-header-content-length"
            )
        if size > len(self._data) - self._at:
            raise InvalidRequest(
                f"binary_data_size of {where} is {size}, but {len(self._data) - self._at} bytes are left of the body"
            )
        self._at += size
        return self._data[self._at - size : self._at]

    def end(self) -> None:
        if self._at != len(self._data):
            raise InvalidRequest(
                f"{len(self._data) - self._at} bytes of the body belong to no input; the sum of all binary_data_size "
                "must be the body without its JSON part"
            )


def _raw_request(
    body: memoryview, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], limits: RequestLimits
) -> InferRequest:
    """The body is the only input, a batch of one; everything is answered in raw form."""
    if len(inputs) != 1:
        raise InvalidRequest(f"a raw request is for models of one input; this one has {[s.name for s in inputs]}")
    spec = inputs[0]
    where = f"input {spec.name!r}"
    shape = [1, *spec.shape[1:]] if spec.shape[:1] == (-1,) else list(spec.shape)
    if spec.datatype == "BYTES":
        if math.prod(shape) != 1:
            raise InvalidRequest(f"a raw request holds one element of BYTES, but {where} is {list(spec.shape)}")
        array = bytes_array([bytes(body)], tuple(shape))
    else:
        free = [i for i, size in enumerate(shape) if size == -1]
        if len(free) > 1:
            raise InvalidRequest(f"the shape of a raw request cannot be told: {where} is {list(spec.shape)}")
        if free:
            one = math.prod(size for size in shape if size != -1) * NUMPY[spec.datatype].itemsize
            shape[free[0]] = len(body) // one if one else 0
        array = _from_raw(body, spec, _shape(shape, spec, limits), where)
    rows = 1 if spec.shape[:1] == (-1,) else 0
    _bound_outputs(outputs, rows, limits)
    names = tuple(output.name for output in outputs)
    return InferRequest({spec.name: array}, names, binary=frozenset(names), rows=rows)


def _bound_outputs(wanted: Sequence[TensorSpec], rows: int, limits: RequestLimits) -> None:
    for spec in wanted:
        size = math.prod(max(rows, 1) if i == 0 and d == -1 else max(d, 1) for i, d in enumerate(spec.shape))
        if size > limits.elements:
            raise InvalidRequest(f"output {spec.name!r} would hold {size} elements, at most {limits.elements} may")


def _wanted(value: Any, outputs: Sequence[TensorSpec], all_binary: Any) -> tuple[list[TensorSpec], frozenset[str]]:
    """The outputs asked for, and those of them that are wanted in binary."""
    specs = {spec.name: spec for spec in outputs}
    otherwise = _switch(all_binary, "parameter 'binary_data_output'")
    named = {} if value is None or value == [] else _named(value, "outputs", specs)
    wanted = [specs[name] for name in named] or list(outputs)
    binary = {spec.name for spec in wanted if otherwise}
    for name, output in named.items():
        if "binary_data" in output["parameters"]:
            chosen = _switch(output["parameters"]["binary_data"], f"parameter 'binary_data' of output {name!r}")
            binary = binary | {name} if chosen else binary - {name}
    if half := [spec.name for spec in wanted if spec.datatype == "FP16" and spec.name not in binary]:
        raise Unsupported(f"output {half[0]!r} is FP16, which has no JSON form; ask for it with binary_data: true")
    return wanted, frozenset(binary)


def _tensor(tensor: dict[str, Any], spec: TensorSpec, limits: RequestLimits, raws: _RawTensors) -> Array:
    where = f"input {spec.name!r}"
    datatype = tensor.get("datatype")
    if datatype != spec.datatype:
        raise InvalidRequest(f"datatype of {where} must be {spec.datatype}, got {shown(datatype)}")
    shape = _shape(tensor.get("shape"), spec, limits)
    size = tensor["parameters"].get("binary_data_size")
    if size is not None:
        if tensor.get("data") is not None:
            raise InvalidRequest(f"{where} has data and binary_data_size; send one of the two")
        size = _whole(size, f"binary_data_size of {where}")
        return _from_raw(raws.take(size, where), spec, shape, where)
    if spec.datatype not in _ACCEPTED:
        raise Unsupported(f"{where} is {spec.datatype}, which has no JSON form; send it as binary tensor data")
    data = tensor.get("data")
    if not isinstance(data, list):
        raise InvalidRequest(f"data of {where} must be a list, nested or flat, got {shown(data)}")
    return _array(_flat(data, shape, where), spec, shape, where)


def _from_raw(raw: memoryview, spec: TensorSpec, shape: tuple[int, ...], where: str) -> Array:
    try:
        array = from_raw(raw, spec.datatype, shape)
    except MalformedTensor as error:
        raise InvalidRequest(f"binary data of {where}: {error}") from error
    if array.dtype.kind == "f" and not all_finite(array):
        numbers = array if not spec.missing else array[~np.isnan(array)]
        if not np.isfinite(numbers).all():
            hint = "" if spec.missing else ": the model was not trained with missing values"
            raise InvalidRequest(f"binary data of {where} holds NaN or infinity{hint}")
    if array.dtype.kind == "b" and np.frombuffer(raw, np.uint8).max(initial=0) > 1:
        raise InvalidRequest(f"binary data of {where} holds bytes that are neither 0 nor 1")
    return array


def all_finite(array: Array) -> bool:
    """Whether every number is finite; much faster than asking each where they are."""
    with np.errstate(over="ignore", invalid="ignore"):
        return math.isfinite(array.sum(dtype=np.float64)) or bool(np.isfinite(array).all())


def _shape(value: Any, spec: TensorSpec, limits: RequestLimits) -> tuple[int, ...]:
    where = f"input {spec.name!r}"
    if not isinstance(value, list) or set(map(type, value)) - {int}:
        raise InvalidRequest(f"shape of {where} must be a list of integers, got {shown(value)}")
    if len(value) > limits.rank or any(size < 1 for size in value):
        raise InvalidRequest(
            f"shape of {where} must have at most {limits.rank} dimensions of at least 1, got {shown(value)}"
        )
    fits = len(value) == len(spec.shape) and all(s in (-1, v) for v, s in zip(value, spec.shape, strict=True))
    if not fits:
        raise InvalidRequest(f"shape of {where} must be {list(spec.shape)} (-1: any size), got {shown(value)}")
    if (count := math.prod(value)) > limits.elements:
        raise InvalidRequest(f"{where} of shape {shown(value)} holds {count} elements, at most {limits.elements} may")
    return tuple(value)


def _flat(data: list[Any], shape: tuple[int, ...], where: str) -> list[Any]:
    """The elements row by row, from data that is flat already or nested exactly as the shape says."""
    count = math.prod(shape)
    if not data or type(data[0]) is not list:
        if len(data) != count:
            raise InvalidRequest(f"data of {where} has {len(data)} elements, its shape {list(shape)} takes {count}")
        return data
    level: list[Any] = [data]
    for depth, size in enumerate(shape):
        if set(map(type, level)) != {list} or set(map(len, level)) != {size}:
            raise InvalidRequest(
                f"data of {where} is not nested as its shape {list(shape)} says: "
                f"dimension {depth} must hold lists of {size}; send it so, or flat"
            )
        level = list(chain.from_iterable(level))
    return level


def _array(elements: list[Any], spec: TensorSpec, shape: tuple[int, ...], where: str) -> Array:
    # Checked here because numpy would take "1.5" for a number and 2 for true; of None it makes NaN.
    datatype = spec.datatype
    types, description = _ACCEPTED[datatype]
    dtype = NUMPY[datatype]
    gaps = elements.count(None) if spec.missing and dtype.kind == "f" else 0
    if wrong := set(map(type, elements)) - types - ({type(None)} if gaps else set()):
        value = next(element for element in elements if type(element) in wrong)
        hint = "" if value is not None else ": the model was not trained with missing values"
        raise InvalidRequest(f"data of {where} ({datatype}) must be {description}, got {shown(value)}{hint}")
    if datatype == "BYTES":
        return bytes_array([element.encode() for element in elements], shape)
    try:
        with np.errstate(over="ignore"):  # found just below
            array = np.array(elements, dtype=dtype).reshape(shape)
    except OverflowError as error:
        raise InvalidRequest(f"data of {where} holds a number that does not fit {datatype}") from error
    if dtype.kind == "f" and np.count_nonzero(~np.isfinite(array)) != gaps:
        raise InvalidRequest(f"data of {where} holds a number that does not fit {datatype}")
    return array


def _raw_output(name: str, array: Array, size: int) -> dict[str, Any]:
    parameters = {"binary_data_size": size}
    return {"name": name, "datatype": datatype_of(array), "shape": array.shape, "parameters": parameters}


def _output(name: str, array: Array) -> dict[str, Any]:
    datatype = datatype_of(array)
    if datatype == "FP16":
        raise Unsupported(f"output {name!r} is FP16, which has no JSON form; ask for other outputs")
    data: Any = array.ravel()
    if datatype == "BYTES":
        data = [element.decode(errors="replace") for element in data]
    return {"name": name, "datatype": datatype, "shape": array.shape, "data": data}
