"""Requests of OpenAI's API: what they mean, and what is refused; and answers in its form."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from serving.decoding.generation_order import GenerationPart, ToldToken
from serving.exceptions import InvalidRequest, ServingError, Unsupported
from serving.front.openai_answer import OpenAiWriter, ToldChoice, openai_error
from serving.front.openai_request import read_chat, read_completion, read_generate
from serving.limits import GenerationBounds

BOUNDS = GenerationBounds()
SAID = [{"role": "user", "content": "Hi"}]


def completion(**given: Any) -> Any:
    return read_completion(orjson.dumps({"model": "m", **given}), BOUNDS)


def chat(**given: Any) -> Any:
    return read_chat(orjson.dumps({"model": "m", "messages": SAID, **given}), BOUNDS)


def test_prompts_in_all_their_forms() -> None:
    assert [order.prompt for order in completion(prompt="a").orders] == ["a"]
    assert [order.prompt for order in completion(prompt=["a", "b"]).orders] == ["a", "b"]
    assert [order.prompt for order in completion(prompt=[5, 6]).orders] == [(5, 6)]
    assert [order.prompt for order in completion(prompt=[[5], [6, 7]]).orders] == [(5,), (6, 7)]
    assert completion().orders[0].prompt == ""
    assert completion(prompt="a").orders[0].max_tokens == 16


def test_answers_to_a_prompt_have_seeds_one_after_the_other_and_always_one() -> None:
    asked = completion(prompt=["a", "b"], n=2, seed=7)
    assert [(order.prompt, order.seed) for order in asked.orders] == [("a", 7), ("a", 8), ("b", 7), ("b", 8)]
    first, second = (completion(prompt="a").orders[0].seed for _ in range(2))
    assert first is not None and second is not None and first != second


def test_what_a_conversation_asks_for() -> None:
    asked = chat(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        ],
        max_tokens=5,
        max_completion_tokens=7,
        stream=True,
        stream_options={"include_usage": True},
        logprobs=True,
        top_logprobs=3,
        stop="\n",
        logit_bias={"5": -100},
        user="somebody",
        prediction={"type": "content", "content": "x"},
    )
    (order,) = asked.orders
    assert order.messages == ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "ab"})
    assert (order.max_tokens, order.logprobs, order.stop, order.logit_bias) == (7, 3, ("\n",), {5: -100.0})
    assert asked.chat and asked.stream and asked.usage and asked.logprobs
    assert order.prediction == "x"
    assert chat().orders[0].max_tokens is None and chat().orders[0].prediction is None
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat(prediction={"type": "content", "content": parts}).orders[0].prediction == "ab"
    assert json.loads(chat(response_format={"type": "json_object"}).orders[0].json_schema) == {"type": "object"}
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array"}}}
    assert json.loads(chat(response_format=schema).orders[0].json_schema) == {"type": "array"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"model": 3}, "model must name a model"),
        ({"messages": []}, "messages must be a list of at least one"),
        ({"messages": ["x"]}, "a message must be an object with a role"),
        ({"messages": [{"role": "user", "content": 3}]}, "content of a message must be text, got int"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "other parts than text are not offered"),
        ({"tools": [{"type": "function"}]}, "tools is not offered"),
        ({"tool_choice": "auto"}, "tool_choice is not offered"),
        ({"modalities": ["audio"]}, "modalities other than text"),
        ({"n": 0}, "n 0 must be a whole number from 1 to 16"),
        ({"n": 1000}, "n 1000 must be a whole number from 1 to 16"),
        ({"temperature": 3}, "temperature 3 is refused: input should be less than or equal to 2"),
        ({"top_p": 0}, "top_p 0 is refused"),
        ({"stop": ["a"] * 9}, "stop must be a text or a list of at most 8"),
        ({"stop": [""]}, "none empty"),
        ({"seed": "x"}, "seed 'x' must be a whole number"),
        ({"stream": "yes"}, "stream 'yes' must be true or false"),
        ({"top_logprobs": 2}, "top_logprobs needs logprobs: true"),
        ({"logprobs": True, "top_logprobs": 21}, "logprobs 21 is refused"),
        ({"max_tokens": -1}, "max_tokens -1 is refused"),
        ({"response_format": {"type": "xml"}}, "response_format.type 'xml' must be"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "must be {name, schema}"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x"),
    ],
)
def test_what_a_conversation_cannot_ask_for(given: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        chat(**given)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"prompt": 5}, "prompt must be a text"),
        ({"prompt": ["a", 5]}, "prompt must be a text"),
        ({"prompt": []}, "prompt must be a text"),
        ({"prompt": ["a"] * 9, "n": 2}, "9 prompts and n 2 are more than 16 answers"),
        ({"best_of": 3}, "best_of 3 is not offered"),
        ({"suffix": "x"}, "suffix is not offered"),
        ({"logprobs": True}, "logprobs True must be a whole number"),
        ({"echo": 1}, "echo 1 must be true or false"),
    ],
)
def test_what_a_completion_cannot_ask_for(given: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        completion(**given)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"null"])
def test_bodies_that_are_no_object(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="the body"):
        read_chat(body, BOUNDS)


def test_v2_s_generate_extension() -> None:
    body = {"text_input": "a", "parameters": {"max_tokens": 3, "temperature": 0, "stop": ["x"], "seed": 4}}
    asked = read_generate(orjson.dumps(body), "m", stream=True)
    order = asked.orders[0]
    assert (order.prompt, order.max_tokens, order.temperature, order.stop, order.seed) == ("a", 3, 0, ("x",), 4)
    assert asked.stream and not asked.chat
    with pytest.raises(Unsupported, match="parameter 'top_k' is not offered; those are: ignore_eos, max_tokens"):
        read_generate(orjson.dumps({"text_input": "a", "parameters": {"top_k": 3}}), "m", stream=False)
    with pytest.raises(InvalidRequest, match="text_input must be text"):
        read_generate(b"{}", "m", stream=False)


# -- answers ----------------------------------------------------------------------------------------------------------
TOLD = ToldToken(text="a", bytes=(97,), logprob=-0.5, top=(("a", -0.5), ("b", -1.0)))
PART = GenerationPart(text="a", tokens=(TOLD,), prompt_tokens=3, cached_tokens=2, completion_tokens=1)


def events(said: bytes) -> list[Any]:
    lines = [line for line in said.split(b"\n\n") if line]
    assert all(line.startswith(b"data: ") for line in lines)
    return [line[6:] if line == b"data: [DONE]" else orjson.loads(line[6:]) for line in lines]


def test_a_stream_of_a_conversation() -> None:
    writer = OpenAiWriter(chat(logprobs=True, top_logprobs=2, stream=True, stream_options={"include_usage": True}))
    choice = ToldChoice()
    choice.add(PART)
    last = GenerationPart(finish="stop", prompt_tokens=3, cached_tokens=2, completion_tokens=2)
    choice.add(last)
    told = events(writer.first() + writer.piece(0, PART) + writer.piece(0, last) + writer.last([choice]))
    assert told[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert told[1]["choices"][0]["delta"] == {"content": "a"}
    scored = told[1]["choices"][0]["logprobs"]["content"][0]
    assert scored["token"] == "a" and scored["bytes"] == [97] and len(scored["top_logprobs"]) == 2
    assert told[2]["choices"][0] == {"index": 0, "finish_reason": "stop", "logprobs": None, "delta": {}}
    assert told[3]["choices"] == [] and told[3]["usage"]["total_tokens"] == 5
    assert told[3]["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}
    assert told[4] == b"[DONE]"
    assert all(event["usage"] is None and event["object"] == "chat.completion.chunk" for event in told[:3])
    assert len({event["id"] for event in told[:4]}) == 1


def test_offsets_of_a_completion_go_on_from_piece_to_piece() -> None:
    writer = OpenAiWriter(completion(prompt="x", logprobs=2, stream=True))
    offsets = [events(writer.piece(0, PART))[0]["choices"][0]["logprobs"]["text_offset"] for _ in range(3)]
    assert offsets == [[0], [1], [2]]
    assert writer.piece(0, GenerationPart()) == b""


def test_prompts_are_counted_once_for_all_their_answers() -> None:
    writer, choice = OpenAiWriter(completion(prompt=["a", "b"], n=2)), ToldChoice()
    choice.add(PART)
    told = orjson.loads(writer.whole([choice] * 4))
    assert told["usage"]["prompt_tokens"] == 6 and told["usage"]["completion_tokens"] == 4
    assert [each["index"] for each in told["choices"]] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "invalid_request_error"), (404, "not_found_error"), (429, "rate_limit_error"), (503, "server_error")],
)
def test_errors_say_of_which_kind_they_are(status: int, kind: str) -> None:
    error = ServingError("why")
    error.status = status
    assert orjson.loads(openai_error(error)) == {"error": {"message": "why", "type": kind, "param": None, "code": None}}
