"""Requests of OpenAI's API for completions, as orders for an engine: what changes their meaning is kept or refused."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import ValidationError

from serving.decoding.generation_order import GenerationOrder
from serving.exceptions import InvalidRequest, Unsupported
from serving.limits import GenerationBounds

_REFUSED = (
    *("tools", "functions", "audio", "web_search_options", "suffix", "guided_grammar", "guided_regex"),
    *("function_call", "parallel_tool_calls"),
)
"""Fields that would change what is answered, and are not offered."""
_MOST_SEED = 2**63
_DEFAULT_TOKENS = 16
"""Of a completion that does not say; a conversation goes on to its end."""


@dataclass(frozen=True)
class ContinueRequest:
    """What is asked for.

    ``orders``: by prompt, and ``choices`` of them for each. ``usage``: whether a stream ends with the counts.
    """

    model: str
    orders: tuple[GenerationOrder, ...]
    choices: int
    chat: bool
    stream: bool = False
    usage: bool = False
    logprobs: bool = False


def read_completion(body: bytes, bounds: GenerationBounds) -> ContinueRequest:
    """A request to ``/v1/completions``.

    Raises:
        InvalidRequest: a field is missing, wrong, or not offered; names it. (Clients try again after a 501.)
    """
    given = _object(body)
    prompts = _prompts(given.get("prompt", ""))
    logprobs = given.get("logprobs")
    if isinstance(logprobs, bool) or (logprobs is not None and not isinstance(logprobs, int)):
        raise InvalidRequest(f"logprobs {logprobs!r} must be a whole number, the number of likely tokens to name")
    count = _count(given, bounds)
    if given.get("best_of") not in (None, count):
        raise InvalidRequest(f"best_of {given['best_of']!r} is not offered: ask for n answers and choose")
    most = given.get("max_tokens")
    common = {"echo": _truth(given, "echo"), "logprobs": logprobs, "prediction": _prediction(given.get("prediction"))}
    common["max_tokens"] = _DEFAULT_TOKENS if most is None else most
    return _request(given, [{"prompt": prompt, **common} for prompt in prompts], bounds, chat=False)


def read_chat(body: bytes, bounds: GenerationBounds) -> ContinueRequest:
    """A request to ``/v1/chat/completions``; raises as :func:`read_completion`."""
    given = _object(body)
    messages = given.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("messages must be a list of at least one message {role, content}")
    top = given.get("top_logprobs")
    if top is not None and not _truth(given, "logprobs"):
        raise InvalidRequest("top_logprobs needs logprobs: true")
    order = {
        "messages": [_message(message) for message in messages],
        "logprobs": (top or 0) if _truth(given, "logprobs") else None,
        "max_tokens": given.get("max_completion_tokens", given.get("max_tokens")),
        "json_schema": _schema(given.get("response_format")),
        "prediction": _prediction(given.get("prediction")),
    }
    if given.get("modalities") not in (None, ["text"]):
        raise InvalidRequest("modalities other than text are not offered")
    if given.get("tool_choice") not in (None, "none"):
        raise InvalidRequest("tool_choice is not offered; leave it out")
    return _request(given, [order], bounds, chat=True)


def read_generate(body: bytes, model: str, *, stream: bool) -> ContinueRequest:
    """A request to ``/v2/models/MODEL/generate``: ``text_input`` and ``parameters``."""
    given = _object(body)
    text, parameters = given.get("text_input"), given.get("parameters") or {}
    if not isinstance(text, str):
        raise InvalidRequest("text_input must be text")
    if not isinstance(parameters, dict):
        raise InvalidRequest("parameters must be an object")
    known = {"max_tokens", "temperature", "top_p", "seed", "stop", "ignore_eos"}
    if others := sorted(parameters.keys() - known):
        raise Unsupported(f"parameter {others[0]!r} is not offered; those are: {', '.join(sorted(known))}")
    order = {"prompt": text, "max_tokens": parameters.get("max_tokens", 20)}
    return _request({"model": model, "stream": stream, **parameters, "n": 1}, [order], GenerationBounds(), chat=False)


def _request(
    given: Mapping[str, Any], orders: list[dict[str, Any]], bounds: GenerationBounds, *, chat: bool
) -> ContinueRequest:
    model = given.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidRequest("model must name a model of this endpoint; GET /v1/models lists them")
    for name in _REFUSED:
        if given.get(name):
            raise InvalidRequest(f"{name} is not offered by this endpoint; leave it out")
    count, options = _count(given, bounds), given.get("stream_options") or {}
    if len(orders) * count > bounds.choices:
        raise InvalidRequest(f"{len(orders)} prompts and n {count} are more than {bounds.choices} answers at a time")
    stop = given.get("stop")
    stops = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(stops, list) or len(stops) > bounds.stops or not all(isinstance(s, str) and s for s in stops):
        raise InvalidRequest(f"stop must be a text or a list of at most {bounds.stops} of them, none empty")
    seed = given.get("seed")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise InvalidRequest(f"seed {seed!r} must be a whole number")
    # Always one: an engine that takes over from another one that died goes on with the same text.
    first = secrets.randbits(48) if seed is None else abs(seed) % _MOST_SEED
    common = {
        "stop": stops,
        "ignore_end": _truth(given, "ignore_eos"),
        "logit_bias": given.get("logit_bias") or {},
        **{name: given[name] for name in _NUMBERS if given.get(name) is not None},
    }
    try:
        made = tuple(
            GenerationOrder.model_validate({**order, **common, "seed": (first + choice) % _MOST_SEED})
            for order in orders
            for choice in range(count)
        )
    except ValidationError as error:
        told = error.errors()[0]
        place = ".".join(map(str, told["loc"]))
        raise InvalidRequest(f"{place} {told['input']!r:.80} is refused: {told['msg'].lower()}") from error
    return ContinueRequest(
        model=model,
        orders=made,
        choices=count,
        chat=chat,
        stream=_truth(given, "stream"),
        usage=_truth(options, "include_usage") if isinstance(options, dict) else False,
        logprobs=made[0].logprobs is not None,
    )


_NUMBERS = ("temperature", "top_p", "presence_penalty", "frequency_penalty")


def _object(body: bytes) -> dict[str, Any]:
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise InvalidRequest("the body must be a JSON object")
    return given


def _prompts(given: Any) -> list[str | list[int]]:
    """A text, a list of texts, the tokens of one, or a list of those."""
    if isinstance(given, str):
        return [given]
    if isinstance(given, list) and given:
        if all(_is_token(each) for each in given):
            return [given]
        if all(isinstance(each, str) or (isinstance(each, list) and all(map(_is_token, each))) for each in given):
            return list(given)
    raise InvalidRequest("prompt must be a text, a list of texts, or tokens as whole numbers")


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _count(given: Mapping[str, Any], bounds: GenerationBounds) -> int:
    count = given.get("n")
    if count is None:
        return 1
    if not _is_token(count) or not 1 <= count <= bounds.choices:
        raise InvalidRequest(f"n {count!r} must be a whole number from 1 to {bounds.choices}")
    return int(count)


def _truth(given: Mapping[str, Any], name: str) -> bool:
    value = given.get(name)
    if value is not None and not isinstance(value, bool):
        raise InvalidRequest(f"{name} {value!r} must be true or false")
    return bool(value)


def _message(given: Any) -> dict[str, Any]:
    if not isinstance(given, dict) or not isinstance(given.get("role"), str):
        raise InvalidRequest("a message must be an object with a role and a content")
    content = _text_of(given.get("content"), "a message")
    role = "system" if given["role"] == "developer" else given["role"]
    return {"role": role, "content": content}


def _text_of(content: Any, whose: str) -> str:
    """Text as such, or in parts."""
    if isinstance(content, list):
        wrong = [part for part in content if not isinstance(part, dict) or part.get("type") != "text"]
        if wrong:
            raise InvalidRequest(f"other parts than text are not offered in {whose}")
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        raise InvalidRequest(f"the content of {whose} must be text, got {type(content).__name__}")
    return content


def _prediction(given: Any) -> str | None:
    if given is None:
        return None
    if not isinstance(given, dict) or given.get("type") != "content":
        raise InvalidRequest("prediction must be {type: content, content: what the answer may be}")
    return _text_of(given.get("content"), "a prediction")


def _schema(given: Any) -> str | None:
    """The JSON schema of ``response_format``, as JSON."""
    if given is None or given == {"type": "text"}:
        return None
    if not isinstance(given, dict):
        raise InvalidRequest("response_format must be an object")
    if given.get("type") == "json_object":
        return json.dumps({"type": "object"})
    if given.get("type") == "json_schema":
        said = given.get("json_schema")
        if not isinstance(said, dict) or not isinstance(said.get("schema"), dict):
            raise InvalidRequest("response_format.json_schema must be {name, schema}, with the schema as an object")
        return json.dumps(said["schema"])
    raise InvalidRequest(f"response_format.type {given.get('type')!r} must be text, json_object or json_schema")
