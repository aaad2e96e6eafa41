"""Inference between gRPC's messages and the binary body that HTTP takes: tensors go over as they are."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import orjson

from serving.exceptions import InvalidRequest
from serving.grpc_front.front_link import FrontAnswer
from serving.grpc_front.inference_pb2 import InferParameter, ModelInferRequest, ModelInferResponse

_TYPED = {
    "BOOL": ("bool_contents", "?"),
    "INT8": ("int_contents", "b"),
    "INT16": ("int_contents", "h"),
    "INT32": ("int_contents", "i"),
    "INT64": ("int64_contents", "q"),
    "UINT8": ("uint_contents", "B"),
    "UINT16": ("uint_contents", "H"),
    "UINT32": ("uint_contents", "I"),
    "UINT64": ("uint64_contents", "Q"),
    "FP32": ("fp32_contents", "f"),
    "FP64": ("fp64_contents", "d"),
    "BYTES": ("bytes_contents", ""),
}
"""By datatype the member that holds its typed contents, and ``struct``'s code of an element."""
_OF_HTTP = {"binary_data": True, "binary_data_output": True}
"""Parameters of HTTP's binary form, as they hold over gRPC anyway; some clients send them here too."""
_SIZE = "binary_data_size"


def infer_body(request: ModelInferRequest, seconds: float | None, *, most_elements: int) -> tuple[bytes, int]:
    """The body of the same request over HTTP, with raw tensors and asking for such; and the bytes of its JSON part.

    Args:
        seconds: until the caller's deadline, which becomes the parameter ``timeout``; None for no deadline.
        most_elements: of a tensor in typed contents.

    Raises:
        InvalidRequest: tensors are sent twice, or not as the protocol says. The rest is checked where the model is.
    """
    raws, sent_raw = _raw_inputs(request, most_elements), bool(request.raw_input_contents)
    parameters = _plain(request.parameters)
    if seconds is not None:
        left, given = max(1, int(1e6 * seconds)), parameters.get("timeout", 0)
        if given == 0 or (type(given) is int and given > left):
            parameters["timeout"] = left
    head: dict[str, Any] = {
        "parameters": {**parameters, "binary_data_output": True},
        "inputs": [
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": list(tensor.shape),
                "parameters": {**_plain(tensor.parameters, {_SIZE: len(raw) if sent_raw else None}), _SIZE: len(raw)},
            }
            for tensor, raw in zip(request.inputs, raws, strict=True)
        ],
    }
    if request.id:
        head["id"] = request.id
    if request.outputs:
        head["outputs"] = [{"name": o.name, "parameters": _plain(o.parameters)} for o in request.outputs]
    described = orjson.dumps(head)
    return b"".join((described, *raws)), len(described)


def infer_response(answer: FrontAnswer) -> ModelInferResponse:
    """The message of an answer whose outputs are raw. Always so: clients read no other contents of numbers."""
    body, at = answer.body, answer.json_bytes if answer.json_bytes >= 0 else len(answer.body)
    described = orjson.loads(body[:at])
    response = ModelInferResponse(
        model_name=described["model_name"], model_version=described["model_version"], id=described.get("id", "")
    )
    for output in described["outputs"]:
        end = at + output["parameters"]["binary_data_size"]
        response.outputs.add(name=output["name"], datatype=output["datatype"], shape=output["shape"])
        response.raw_output_contents.append(body[at:end])
        at = end
    return response


def _raw_inputs(request: ModelInferRequest, most_elements: int) -> list[bytes]:
    raws = request.raw_input_contents
    if not raws:
        return [_from_typed(tensor, most_elements) for tensor in request.inputs]
    if len(raws) != len(request.inputs):
        raise InvalidRequest(
            f"raw_input_contents has {len(raws)} tensors for {len(request.inputs)} inputs; send one for each"
        )
    for tensor in request.inputs:
        if tensor.HasField("contents"):
            raise InvalidRequest(f"input {_show(tensor.name)} has contents beside raw_input_contents; send one of them")
    return list(raws)


def _from_typed(tensor: ModelInferRequest.InferInputTensor, most_elements: int) -> bytes:
    where = f"input {_show(tensor.name)}"
    if tensor.datatype not in _TYPED:
        raise InvalidRequest(
            f"{where} is {_show(tensor.datatype)}, which has no typed contents; send it in raw_input_contents"
        )
    member, code = _TYPED[tensor.datatype]
    filled = [field.name for field, _ in tensor.contents.ListFields()]
    if filled != [member]:
        got = " and ".join(filled) or "nothing"
        raise InvalidRequest(f"{where} of {tensor.datatype} must come in {member} or raw_input_contents, got {got}")
    elements = getattr(tensor.contents, member)
    if len(elements) > most_elements:
        raise InvalidRequest(f"{where} holds {len(elements)} elements, at most {most_elements} may")
    if not code:
        return b"".join(struct.pack("<I", len(element)) + element for element in elements)
    try:
        return struct.pack(f"<{len(elements)}{code}", *elements)
    except struct.error as error:
        raise InvalidRequest(f"{where} holds a number that does not fit {tensor.datatype}") from error


def _plain(parameters: Mapping[str, InferParameter], holds: Mapping[str, Any] = _OF_HTTP) -> dict[str, Any]:
    """The parameters, without those of HTTP, which may say nothing else than what ``holds`` here."""
    found: dict[str, Any] = {}
    for name, parameter in parameters.items():
        chosen = parameter.WhichOneof("parameter_choice")
        if chosen is None:
            raise InvalidRequest(f"parameter {_show(name)} has no value")
        value = getattr(parameter, chosen)
        if name not in _OF_HTTP and name != _SIZE:
            found[name] = value
        elif name not in holds or type(value) is not type(holds[name]) or value != holds[name]:
            raise InvalidRequest(
                f"parameter {name!r} belongs to HTTP; over gRPC tensors are as long as their raw_input_contents, and "
                "always answered raw"
            )
    return found


def _show(text: str) -> str:
    return ascii(text[:80])
