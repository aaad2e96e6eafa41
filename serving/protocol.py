"""The Open Inference Protocol V2 in JSON: requests to tensors, tensors to answers.

Everything about a request is checked against the model's tensor specs before an array is made; products of shapes
are Python ints and cannot overflow. Unknown members are ignored, as the protocol's extensions require.

JSON has no form for FP16 (nor does the protocol give it one), so models with FP16 tensors need the binary extension.
NaN and infinities in outputs become ``null``: the answer stays valid JSON for every reader. In inputs ``null`` stands
for a missing value, where the model was trained with some.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import orjson

from model_registry.variant import TensorSpec
from serving.exceptions import InvalidRequest, Unsupported
from serving.limits import RequestLimits
from serving.tensors import NUMPY, Array, bytes_array, datatype_of

_INTEGERS = {name for name, dtype in NUMPY.items() if dtype.kind in "iu"}
_ACCEPTED: dict[str, tuple[set[type], str]] = {
    "BOOL": ({bool}, "true or false"),
    "BYTES": ({str}, "strings"),
    "FP32": ({int, float}, "numbers"),
    "FP64": ({int, float}, "numbers"),
    **{name: ({int}, "integers") for name in _INTEGERS},
}


@dataclass(frozen=True)
class InferRequest:
    """A checked request: tensors that fit the model, the outputs wanted in order, and the id to echo."""

    inputs: dict[str, Array]
    outputs: tuple[str, ...]
    id: str | None = None


def parse_request(
    body: bytes, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], limits: RequestLimits
) -> InferRequest:
    """Read an inference request for a model with these inputs and outputs.

    Raises:
        InvalidRequest: the text names the member, its value, the rule and what to send instead.
        Unsupported: it needs the binary tensor extension.
    """
    request = read_object(body)
    identity = request.get("id")
    if identity is not None and not isinstance(identity, str):
        raise InvalidRequest(f"id must be a string, got {_show(identity)}")
    if identity is not None and len(identity) > limits.id_characters:
        raise InvalidRequest(f"id has {len(identity)} characters; at most {limits.id_characters} are echoed")
    _parameters(request, "the request")
    tensors = _named(request.get("inputs"), "inputs", {spec.name: spec for spec in inputs})
    if missing := [spec.name for spec in inputs if spec.name not in tensors]:
        raise InvalidRequest(f"input {missing[0]!r} is missing; the model takes {[spec.name for spec in inputs]}")
    arrays = {spec.name: _tensor(tensors[spec.name], spec, limits) for spec in inputs}
    batches = {spec.name: arrays[spec.name].shape[0] for spec in inputs if spec.shape[:1] == (-1,)}
    if len(set(batches.values())) > 1:
        raise InvalidRequest(f"inputs must agree in their first dimension, the batch; got {batches}")
    wanted = _wanted(request.get("outputs"), outputs)
    for spec in wanted:
        rows = next(iter(batches.values()), 1)
        size = math.prod(rows if i == 0 and d == -1 else max(d, 1) for i, d in enumerate(spec.shape))
        if size > limits.elements:
            raise InvalidRequest(f"output {spec.name!r} would hold {size} elements, at most {limits.elements} may")
    return InferRequest(arrays, tuple(spec.name for spec in wanted), identity)


def answer(model: str, version: str, outputs: Mapping[str, Array], identity: str | None) -> bytes:
    """The JSON answer of an inference: outputs in order, ``data`` flat and row-major.

    Raises:
        Unsupported: an output is FP16, which has no JSON form.
    """
    body: dict[str, Any] = {"model_name": model, "model_version": version}
    if identity is not None:
        body["id"] = identity
    body["outputs"] = [_output(name, array) for name, array in outputs.items()]
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a request body; InvalidRequest if it is none. Nesting beyond 1024 levels is refused."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidRequest(f"the body must be a JSON object, got {_show(value)}")
    return value


def _named(value: Any, member: str, specs: Mapping[str, TensorSpec]) -> dict[str, dict[str, Any]]:
    """The tensors of a list, by name: each an object, known to the model, and there once."""
    if not isinstance(value, list):
        raise InvalidRequest(f"{member} must be a list of tensors, got {_show(value)}")
    found: dict[str, dict[str, Any]] = {}
    for tensor in value:
        if not isinstance(tensor, dict):
            raise InvalidRequest(f"each of {member} must be an object with a name, got {_show(tensor)}")
        name = tensor.get("name")
        if not isinstance(name, str):
            raise InvalidRequest(f"the name of each of {member} must be a string, got {_show(name)}")
        if name not in specs:
            raise InvalidRequest(f"the model has no {member[:-1]} {_show(name)}; it has {list(specs)}")
        if name in found:
            raise InvalidRequest(f"{member[:-1]} {name!r} is given twice")
        _parameters(tensor, f"{member[:-1]} {name!r}")
        found[name] = tensor
    return found


def _parameters(holder: dict[str, Any], where: str) -> None:
    parameters = holder.get("parameters")
    if parameters is None:
        return
    if not isinstance(parameters, dict):
        raise InvalidRequest(f"parameters of {where} must be an object, got {_show(parameters)}")
    for name, value in parameters.items():
        if not isinstance(value, str | int | float):  # bool is an int
            raise InvalidRequest(
                f"parameter {_show(name)} of {where} must be a string, number or boolean, got {_show(value)}"
            )


def _wanted(value: Any, outputs: Sequence[TensorSpec]) -> list[TensorSpec]:
    specs = {spec.name: spec for spec in outputs}
    if value is None or value == []:
        wanted = list(outputs)
    else:
        wanted = [specs[name] for name in _named(value, "outputs", specs)]
    if half := [spec.name for spec in wanted if spec.datatype == "FP16"]:
        raise Unsupported(f"output {half[0]!r} is FP16, which has no JSON form; ask for other outputs")
    return wanted


def _tensor(tensor: dict[str, Any], spec: TensorSpec, limits: RequestLimits) -> Array:
    where = f"input {spec.name!r}"
    datatype = tensor.get("datatype")
    if datatype != spec.datatype:
        raise InvalidRequest(f"datatype of {where} must be {spec.datatype}, got {_show(datatype)}")
    shape = _shape(tensor.get("shape"), spec, limits)
    if spec.datatype not in _ACCEPTED or (tensor.get("parameters") or {}).get("binary_data_size") is not None:
        raise Unsupported(f"{where} needs binary tensor data, which this endpoint does not take yet; send JSON data")
    data = tensor.get("data")
    if not isinstance(data, list):
        raise InvalidRequest(f"data of {where} must be a list, nested or flat, got {_show(data)}")
    return _array(_flat(data, shape, where), spec, shape, where)


def _shape(value: Any, spec: TensorSpec, limits: RequestLimits) -> tuple[int, ...]:
    where = f"input {spec.name!r}"
    if not isinstance(value, list) or set(map(type, value)) - {int}:
        raise InvalidRequest(f"shape of {where} must be a list of integers, got {_show(value)}")
    if len(value) > limits.rank or any(size < 1 for size in value):
        raise InvalidRequest(
            f"shape of {where} must have at most {limits.rank} dimensions of at least 1, got {_show(value)}"
        )
    fits = len(value) == len(spec.shape) and all(s in (-1, v) for v, s in zip(value, spec.shape, strict=True))
    if not fits:
        raise InvalidRequest(f"shape of {where} must be {list(spec.shape)} (-1: any size), got {_show(value)}")
    if (count := math.prod(value)) > limits.elements:
        raise InvalidRequest(f"{where} of shape {_show(value)} holds {count} elements, at most {limits.elements} may")
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
        raise InvalidRequest(f"data of {where} ({datatype}) must be {description}, got {_show(value)}{hint}")
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


def _output(name: str, array: Array) -> dict[str, Any]:
    datatype = datatype_of(array)
    if datatype == "FP16":
        raise Unsupported(f"output {name!r} is FP16, which has no JSON form; ask for other outputs")
    data: Any = array.ravel()
    if datatype == "BYTES":
        data = [element.decode(errors="replace") for element in data]
    return {"name": name, "datatype": datatype, "shape": array.shape, "data": data}


def _show(value: Any) -> str:
    """A client's value in an error text: short, and harmless in a log."""
    text = ascii(value[:80] if isinstance(value, str) else value) if isinstance(value, str | int | float | None) else ""
    if isinstance(value, list) and len(value) <= 8 and all(isinstance(v, int | float | str) for v in value):
        text = ascii(value)
    if not text:
        return f"a {'list' if isinstance(value, list) else 'object'}"
    return text if len(text) <= 80 else f"{text[:77]}..."
