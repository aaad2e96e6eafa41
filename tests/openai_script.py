"""Asks an endpoint with OpenAI's own client: ``python openai_script.py URL MODEL KEY``; prints what it got as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

import openai


def main() -> None:
    url, model, key = sys.argv[1:4]
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
    said: list[Any] = [{"role": "user", "content": "The dog"}]
    common: dict[str, Any] = {"model": model, "temperature": 0, "extra_body": {"ignore_eos": True}}
    found: dict[str, Any] = {"models": [each.id for each in client.models.list()]}
    whole = client.chat.completions.create(messages=said, max_tokens=9, logprobs=True, top_logprobs=2, **common)
    found["chat"] = whole.choices[0].message.content
    found["usage"] = whole.usage.total_tokens if whole.usage else None
    content = whole.choices[0].logprobs.content if whole.choices[0].logprobs else None
    found["logprobs"] = [len(token.top_logprobs) for token in content or []]
    chunks = list(
        client.chat.completions.create(
            messages=said, max_tokens=9, stream=True, stream_options={"include_usage": True}, **common
        )
    )
    found["streamed"] = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    found["stream usage"] = chunks[-1].usage.completion_tokens if chunks[-1].usage else None
    for name, text in (("predicted", found["chat"]), ("predicted wrongly", "nothing like it")):
        given: Any = {"type": "content", "content": text}
        guessed = client.chat.completions.create(messages=said, max_tokens=9, prediction=given, **common)
        details = guessed.usage.completion_tokens_details if guessed.usage else None
        found[name] = [guessed.choices[0].message.content, details.accepted_prediction_tokens if details else None]
    scored = client.completions.create(prompt=[[5, 6, 7], [8, 9]], echo=True, logprobs=1, max_tokens=0, **common)
    found["echo"] = [
        [score is None for score in (choice.logprobs.token_logprobs if choice.logprobs else None) or []]
        for choice in scored.choices
    ]
    shape = {"name": "x", "schema": {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}}
    shape["schema"] |= {"additionalProperties": False}  # type: ignore[operator]
    fitting = client.chat.completions.create(
        model=model, messages=said, max_tokens=60, response_format={"type": "json_schema", "json_schema": shape}
    )
    found["schema"] = fitting.choices[0].message.content
    texts = ["good", "the film was good"]
    packed = client.embeddings.create(model="vectors", input=texts)  # asks for base64 by itself
    plain = client.embeddings.create(model="vectors", input=texts, encoding_format="float")
    found["vectors"], found["vectors as numbers"] = ([each.embedding for each in one.data] for one in (packed, plain))
    found["errors"] = {}
    wrong: dict[str, dict[str, Any]] = {
        "model": {"model": "nowhere"},
        "tools": {"tools": [{"type": "function", "function": {"name": "f"}}]},
        "length": {"max_tokens": 100_000},
    }
    for name, given in wrong.items():
        try:
            client.chat.completions.create(**{"model": model, "messages": said, **given})
        except openai.APIStatusError as error:
            found["errors"][name] = [type(error).__name__, error.message]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
