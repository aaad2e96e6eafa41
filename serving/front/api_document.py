"""``/openapi.json``: the data plane described in OpenAPI 3.1, made from its routes and limits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from model_registry.datatypes import Datatype
from model_registry.variant import TensorSpec
from serving.front.http_routes import MODEL_NAME, VERSION_NUMBER
from serving.front.text_schemas import list_schema, object_schema, parameters_schema, text_schemas
from serving.limits import RequestLimits

_MOST_EXAMPLES = 20
_MOST_SHOWN = 64
"""Elements of a tensor in an example; a larger one is shown in its binary form."""


@dataclass(frozen=True)
class _Operation:
    """What is said of a path and method. ``answer``: the name of its schema; ``statuses``: beyond those of all."""

    summary: str
    answer: str
    statuses: tuple[int, ...] = ()
    open: bool = False
    body: str = ""
    """Name of the schema of its JSON body; empty: none, or that of an inference request."""
    events: bool = False
    """Whether it may answer with a stream of events."""


_NAMED = (404,)
_OPERATIONS = {
    ("GET", "/v2"): _Operation("The server and its extensions", "Server"),
    ("GET", "/v2/models"): _Operation("Names of the models", "Models"),
    ("GET", "/v2/models/stats"): _Operation("Statistics of all versions", "Statistics"),
    ("GET", "/v2/health/live"): _Operation("Whether the endpoint lives", "Live", open=True),
    ("GET", "/v2/health/ready"): _Operation("Whether every model answers", "Ready", open=True),
    ("POST", "/v2/repository/index"): _Operation("Every version that is loaded, and its state", "Index"),
    ("GET", "/openapi.json"): _Operation("This description", "Description", open=True),
    ("GET", "/docs"): _Operation("This description as a page", "", open=True),
    ("GET", "/v2/models/{model}"): _Operation("Inputs and outputs of a model", "ModelMetadata", _NAMED),
    ("GET", "/v2/models/{model}/ready"): _Operation("Whether a model answers", "ModelReady", _NAMED),
    ("GET", "/v2/models/{model}/stats"): _Operation("What a model's versions did", "Statistics", _NAMED),
    ("GET", "/v2/models/{model}/variants"): _Operation(
        "The variants that a request may choose from, with what was measured of them", "Variants", _NAMED
    ),
    ("POST", "/v2/models/{model}/infer"): _Operation("A prediction", "InferenceAnswer", (*_NAMED, 429, 504)),
    ("POST", "/v2/models/{model}/generate"): _Operation(
        "A text continued", "Generated", (*_NAMED, 429, 504), body="GenerateRequest"
    ),
    ("POST", "/v2/models/{model}/generate_stream"): _Operation(
        "The same, piece by piece", "Generated", (*_NAMED, 429, 504), body="GenerateRequest", events=True
    ),
    ("GET", "/v1/models"): _Operation("Models that continue text, as OpenAI's API lists them", "OpenAiModels"),
    ("POST", "/v1/embeddings"): _Operation(
        "Vectors of texts", "Embeddings", (*_NAMED, 429, 504), body="EmbeddingRequest"
    ),
    ("POST", "/v1/completions"): _Operation(
        "Texts continued", "Completion", (*_NAMED, 429, 504), body="CompletionRequest", events=True
    ),
    ("POST", "/v1/chat/completions"): _Operation(
        "What comes next in a conversation", "ChatCompletion", (*_NAMED, 429, 504), body="ChatRequest", events=True
    ),
}
_OF_ALL = (400, 408, 413, 415, 417, 431, 500, 501, 503)
_OF_KEYS = (401, 403)
_STATUSES = {
    400: "The request breaks HTTP or the protocol, or does not fit the model.",
    401: "There is no key, or none that is known.",
    403: "The key may not do this.",
    404: "There is no such model or version.",
    408: "The request did not arrive in time.",
    413: "The body is too long.",
    415: "The body is packed in a way that is not taken here.",
    417: "The header Expect asks for something else than 100-continue.",
    429: "The key has used up its rate.",
    431: "The head is too long, or has too many headers.",
    500: "A fault of the endpoint's own.",
    501: "A part of the protocol, or a parameter, that is not offered.",
    503: "The model or the endpoint cannot answer now, and may soon.",
    504: "The answer would have been too late, or was.",
}


def describe_api(
    routes: Iterable[tuple[str, str]],
    limits: RequestLimits,
    server_version: str,
    models: Mapping[str, tuple[TensorSpec, ...]],
    *,
    keyed: bool,
) -> dict[str, Any]:
    """The document.

    Args:
        routes: method and path of each operation, with ``{model}`` and ``{version}`` in it.
        models: inputs by name of the models that may be named in examples.
        keyed: whether a key is asked for.
    """
    paths: dict[str, dict[str, Any]] = {}
    for method, path in routes:
        said = _OPERATIONS[method, path.replace("/versions/{version}", "")]
        paths.setdefault(path, {})[method.lower()] = _operation(method, path, said, models, keyed=keyed)
    statuses = sorted({*_OF_ALL, *_OF_KEYS, *(s for said in _OPERATIONS.values() for s in said.statuses)})
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Winnow endpoint",
            "version": server_version,
            "description": _description(limits),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": _schemas(limits),
            "responses": {str(status): _refusal(status) for status in statuses},
            "parameters": {
                "model": _path_parameter("model", MODEL_NAME, "Name of a model."),
                "version": _path_parameter("version", VERSION_NUMBER, "Number of a loaded version."),
                **_HEADERS,
            },
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "A key of `winnow keys add`, or a token."}
            },
        },
    }


def _description(limits: RequestLimits) -> str:
    return (
        "Open Inference Protocol V2 with its extensions for binary tensors, statistics and generation; OpenAI's API "
        'for models that continue text. Every refusal is `{"error": text}`, under `/v1` an object in its place. '
        "Another path is answered with 404, another method with 405 and the header Allow; HEAD goes where GET goes. "
        f"A head has at most {limits.head_bytes} bytes and {limits.headers} headers and arrives within "
        f"{limits.head_seconds:g} s. A body has at most {limits.body_bytes} bytes, {limits.unpacked_bytes} and "
        f"{limits.unpacked_ratio} times its size after unpacking, and arrives within {limits.body_seconds:g} s. A "
        f"tensor has at most {limits.elements} elements. An answer comes within {limits.infer_seconds:g} s."
    )


def _operation(
    method: str, path: str, said: _Operation, models: Mapping[str, tuple[TensorSpec, ...]], *, keyed: bool
) -> dict[str, Any]:
    infers = path.endswith("/infer")
    names = [name for name in ("model", "version") if f"{{{name}}}" in path] + (list(_HEADERS) if infers else [])
    asks = keyed and not said.open
    statuses = sorted({*_OF_ALL, *said.statuses, *(_OF_KEYS if asks else ())})
    found: dict[str, Any] = {
        "operationId": "_".join(
            [method.lower(), *(part.strip("{}").replace(".", "_") for part in path.split("/")[1:])]
        ),
        "summary": said.summary + (" (of one version)" if "{version}" in path else ""),
        "responses": {
            "200": _answer(said, infers=infers),
            **{str(status): {"$ref": f"#/components/responses/{status}"} for status in statuses},
        },
        "security": [{"key": []}] if asks else [],
    }
    if names:
        found["parameters"] = [{"$ref": f"#/components/parameters/{name}"} for name in names]
    if infers:
        found["requestBody"] = _inference_body(models)
    elif said.body:
        schema = {"$ref": f"#/components/schemas/{said.body}"}
        found["requestBody"] = {
            "required": True,
            "description": "JSON. Other members of OpenAI's API that would change the answer are refused.",
            "content": {"application/json": {"schema": schema}},
        }
    return found


def _answer(said: _Operation, *, infers: bool) -> dict[str, Any]:
    if not said.answer:
        return {"description": said.summary, "content": {"text/html": {"schema": {"type": "string"}}}}
    content: dict[str, Any] = {"application/json": {"schema": {"$ref": f"#/components/schemas/{said.answer}"}}}
    if said.events:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    if not infers:
        return {"description": said.summary, "content": content}
    content["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
    return {
        "description": "The outputs: in JSON, or the JSON with raw tensors behind it where such were asked for.",
        "headers": {
            "Inference-Header-Content-Length": _header("Bytes of the JSON part, where raw tensors follow.", "integer"),
            "Content-Encoding": _header("gzip, where the request took nothing else.", "string"),
            "Winnow-Version": _header("The version that answered, where a choice was made.", "string"),
            "Winnow-Choice": _header(
                "Why it did: asked (by the request), degraded (there was much to do), canary (it is being rolled out).",
                "string",
            ),
        },
        "content": content,
    }


def _inference_body(models: Mapping[str, tuple[TensorSpec, ...]]) -> dict[str, Any]:
    shown = sorted(models.items())[:_MOST_EXAMPLES]
    in_json = [name for name, inputs in shown if all(_fits_json(spec) for spec in inputs)]
    content: dict[str, Any] = {"schema": {"$ref": "#/components/schemas/InferenceRequest"}}
    if in_json:
        content["examples"] = {n: {"summary": f"A row for {n}", "value": _example(models[n])} for n in in_json}
    raw = [f"`{name}`: {', '.join(_said(spec) for spec in inputs)}" for name, inputs in shown if name not in in_json]
    hint = f" Models whose rows are best sent so: {'; '.join(raw)}." if raw else ""
    return {
        "required": True,
        "description": "JSON, or JSON with the raw tensors behind it; the header Inference-Header-Content-Length "
        f"then says where they begin (0: the body is the one input of a single row).{hint}",
        "content": {
            "application/json": content,
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }


def _fits_json(spec: TensorSpec) -> bool:
    return spec.datatype != "FP16" and math.prod(_row(spec)) <= _MOST_SHOWN


def _said(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.datatype} {list(spec.shape)}"


def _row(spec: TensorSpec) -> list[int]:
    return [1 if size == -1 else size for size in spec.shape]


def _example(inputs: tuple[TensorSpec, ...]) -> dict[str, Any]:
    value: dict[str, Any] = {"BYTES": "text", "BOOL": True}
    return {
        "inputs": [
            {
                "name": spec.name,
                "datatype": spec.datatype,
                "shape": _row(spec),
                "data": [value.get(spec.datatype, 0)] * math.prod(_row(spec)),
            }
            for spec in inputs
        ]
    }


def _path_parameter(name: str, pattern: str, description: str) -> dict[str, Any]:
    schema = {"type": "string", "pattern": f"^{pattern}$"}
    return {"name": name, "in": "path", "required": True, "description": description, "schema": schema}


def _header(description: str, kind: str, **more: Any) -> dict[str, Any]:
    return {"description": description, "schema": {"type": kind, **more}}


_VARIANT = "The variant that is to answer: a version, a variant's name, or the first digits of its digest."
_ACCURACY = "Least value of the metric; the fastest variant that has it answers."
_LATENCY = (
    "Milliseconds within which an answer is wanted; the most accurate variant that is expected to keep it answers."
)
_HEADERS: dict[str, Any] = {
    name: {"name": name, "in": "header", "required": False, **said}
    for name, said in {
        "Inference-Header-Content-Length": _header(
            "Bytes of the body's JSON part, where raw tensors follow.", "integer", minimum=0, maximum=999_999_999
        ),
        "Content-Encoding": _header(
            "How the body is packed.", "string", enum=["identity", "gzip", "deflate"], default="identity"
        ),
        "Accept-Encoding": _header("`gzip` and nothing else: the answer may be packed.", "string"),
        "Winnow-Variant": _header(f"As the parameter variant. {_VARIANT}", "string"),
        "Winnow-Min-Accuracy": _header(f"As the parameter min_accuracy. {_ACCURACY}", "number"),
        "Winnow-Max-Latency-Ms": _header(f"As the parameter max_latency_ms. {_LATENCY}", "number", exclusiveMinimum=0),
    }.items()
}


def _refusal(status: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "description": _STATUSES[status],
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    if status in (429, 503):
        found["headers"] = {"Retry-After": _header("Seconds after which to ask again.", "integer", minimum=0)}
    if status == 401:
        found["headers"] = {"WWW-Authenticate": _header("How to say who asks.", "string")}
    return found


def _schemas(limits: RequestLimits) -> dict[str, Any]:
    text, number, truth = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
    real = {"type": "number"}
    datatype = {"$ref": "#/components/schemas/Datatype"}
    sizes = {**list_schema({"type": "integer", "minimum": 1}), "maxItems": limits.rank}
    data = {"type": "array", "description": "Row by row, flat or nested as the shape says. null: a missing value."}
    identity = {"type": "string", "maxLength": limits.id_characters, "description": "Is echoed."}
    spec = {"$ref": "#/components/schemas/TensorSpec"}
    duration = object_schema({"count": number, "ns": number})
    parts = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
    version = object_schema(
        {
            "name": text,
            "version": text,
            "last_inference": number,
            "inference_count": number,
            "execution_count": number,
            "inference_stats": object_schema(dict.fromkeys(parts, duration)),
            "batch_stats": {"type": "array"},
        }
    )
    return {
        "Error": {
            **object_schema({"error": {"anyOf": [text, {"$ref": "#/components/schemas/OpenAiError"}]}}),
            "additionalProperties": False,
        },
        **text_schemas(),
        "Datatype": {"type": "string", "enum": list(get_args(Datatype))},
        "InferenceRequest": object_schema(
            {
                "inputs": list_schema(
                    object_schema(
                        {"name": text, "datatype": datatype, "shape": sizes},
                        data=data,
                        parameters=parameters_schema(binary_data_size=number),
                    )
                )
            },
            id=identity,
            parameters=parameters_schema(
                timeout={**number, "description": "Microseconds after which nobody waits for the answer; 0: none."},
                binary_data_output={**truth, "description": "Whether all outputs are to come in raw form."},
                variant={**text, "description": _VARIANT},
                min_accuracy={"type": "number", "description": _ACCURACY},
                max_latency_ms={"type": "number", "exclusiveMinimum": 0, "description": _LATENCY},
            ),
            outputs={
                **list_schema(object_schema({"name": text}, parameters=parameters_schema(binary_data=truth))),
                "description": "Those that are wanted; without it, all.",
            },
        ),
        "InferenceAnswer": object_schema(
            {
                "model_name": text,
                "model_version": text,
                "outputs": list_schema(
                    object_schema(
                        {"name": text, "datatype": datatype, "shape": list_schema(number)},
                        data={"type": "array", "description": "Flat, row by row. null: not a finite number."},
                        parameters=object_schema({"binary_data_size": number}),
                    )
                ),
            },
            id=identity,
        ),
        "TensorSpec": object_schema(
            {
                "name": text,
                "datatype": datatype,
                "shape": {**list_schema({"type": "integer", "minimum": -1}), "description": "-1: any size."},
            },
            missing={**truth, "description": "Whether values may be missing."},
        ),
        "ModelMetadata": object_schema(
            {
                "name": text,
                "versions": list_schema(text),
                "platform": text,
                "inputs": list_schema(spec),
                "outputs": list_schema(spec),
            }
        ),
        "Server": object_schema({"name": text, "version": text, "extensions": list_schema(text)}),
        "Models": object_schema({"models": list_schema(text)}),
        "Live": object_schema({"live": truth}),
        "Ready": object_schema({"ready": truth, "live": truth}),
        "Variants": object_schema(
            {
                "name": text,
                "variants": list_schema(
                    object_schema(
                        {
                            **dict.fromkeys(("version", "name", "digest", "state", "metric"), text),
                            "better": {"type": "string", "enum": ["higher", "lower"]},
                            **dict.fromkeys(("value", "latency_ms", "expected_ms"), real),
                        }
                    )
                ),
            }
        ),
        "ModelReady": object_schema({"name": text, "ready": truth}),
        "Statistics": object_schema({"model_stats": list_schema(version)}),
        "Index": list_schema(object_schema({"name": text, "version": text, "state": text, "reason": text})),
        "Description": {"type": "object", "description": "An OpenAPI document."},
    }
