"""JSON schemas of models that continue text, for the description of the endpoint, and the pieces of all schemas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serving.limits import GenerationBounds


def object_schema(required: Mapping[str, Any], **optional: Any) -> dict[str, Any]:
    """An object with these members."""
    return {"type": "object", "required": list(required), "properties": {**required, **optional}}


def list_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """A list of such."""
    return {"type": "array", "items": schema}


def parameters_schema(**offered: Any) -> dict[str, Any]:
    """Parameters of a request: others are refused."""
    return {"type": "object", "properties": offered, "description": "Others are refused with 501."}


def text_schemas() -> dict[str, Any]:
    """Schemas for models that continue text; what else OpenAI's API has is passed over, or refused with 400."""
    text, whole, truth = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
    maybe = {"type": ["string", "null"]}
    usage = object_schema(dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), whole))
    common = {
        "model": {**text, "description": "One of GET /v1/models."},
        "temperature": {"type": "number", "minimum": 0, "maximum": 2},
        "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        "n": {"type": "integer", "minimum": 1, "maximum": GenerationBounds.choices},
        "seed": whole,
        "stop": {"anyOf": [text, {**list_schema(text), "maxItems": GenerationBounds.stops}]},
        "stream": truth,
        "prediction": {
            **object_schema({"type": {"const": "content"}, "content": text}),
            "description": "What the answer may be, in whole or in parts: what is right of it costs less time.",
        },
        "stream_options": object_schema({}, include_usage=truth),
        "presence_penalty": {"type": "number", "minimum": -2, "maximum": 2},
        "frequency_penalty": {"type": "number", "minimum": -2, "maximum": 2},
        "logit_bias": {"type": "object", "additionalProperties": {"type": "number"}},
        "max_tokens": {"type": "integer", "minimum": 0},
        "ignore_eos": {**truth, "description": "Go on past the tokens that end a text; for measurements."},
    }
    message = object_schema({"role": text, "content": text})
    answered = {"id": text, "created": whole, "model": text, "object": text, "usage": usage}
    choice = {"index": whole, "finish_reason": text}
    return {
        "OpenAiError": object_schema({"message": text, "type": text}, param=maybe, code=maybe),
        "OpenAiModels": object_schema(
            {"object": text, "data": list_schema(object_schema({"id": text, "object": text}))}
        ),
        "CompletionRequest": object_schema(
            {"model": common["model"]},
            prompt={"anyOf": [text, list_schema(text), list_schema(whole), list_schema(list_schema(whole))]},
            echo=truth,
            logprobs={"type": "integer", "minimum": 0, "maximum": 20},
            **{name: schema for name, schema in common.items() if name != "model"},
        ),
        "Completion": object_schema({**answered, "choices": list_schema(object_schema({**choice, "text": text}))}),
        "ChatRequest": object_schema(
            {"model": common["model"], "messages": {**list_schema(message), "minItems": 1}},
            logprobs=truth,
            top_logprobs={"type": "integer", "minimum": 0, "maximum": 20},
            max_completion_tokens={"type": "integer", "minimum": 0},
            response_format=object_schema(
                {"type": {"enum": ["text", "json_object", "json_schema"]}},
                json_schema=object_schema({"name": text, "schema": {"type": "object"}}),
            ),
            **{name: schema for name, schema in common.items() if name != "model"},
        ),
        "ChatCompletion": object_schema(
            {**answered, "choices": list_schema(object_schema({**choice, "message": message}))}
        ),
        "EmbeddingRequest": object_schema(
            {"model": common["model"], "input": {"anyOf": [text, list_schema(text)]}},
            encoding_format={"enum": ["float", "base64"]},
        ),
        "Embeddings": object_schema(
            {"object": text, "model": text, "usage": {"type": "object"}, "data": {"type": "array"}}
        ),
        "GenerateRequest": object_schema(
            {"text_input": text},
            parameters=parameters_schema(
                **{name: common[name] for name in ("max_tokens", "temperature", "top_p", "seed", "stop", "ignore_eos")}
            ),
        ),
        "Generated": object_schema({"model_name": text, "model_version": text, "text_output": text}),
    }
