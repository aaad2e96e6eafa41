"""Answers in the form of OpenAI's API and of V2's generate extension: whole ones, and the pieces of streams."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from serving.decoding.generation_order import GenerationPart, ToldToken
from serving.exceptions import ServingError
from serving.front.openai_request import ContinueRequest

END_OF_STREAM = b"data: [DONE]\n\n"


@dataclass
class ToldChoice:
    """One answer so far."""

    text: str = ""
    tokens: list[ToldToken] = field(default_factory=list)
    finish: str | None = None
    prompt: int = 0
    cached: int = 0
    completion: int = 0
    accepted: int = 0
    rejected: int = 0

    def add(self, part: GenerationPart) -> None:
        """What came next."""
        self.text += part.text
        self.tokens += part.tokens
        self.finish = part.finish
        self.prompt, self.cached, self.completion = part.prompt_tokens, part.cached_tokens, part.completion_tokens
        self.accepted, self.rejected = part.accepted_tokens, part.rejected_tokens


class OpenAiWriter:
    """Writes the answers to one request."""

    def __init__(self, request: ContinueRequest) -> None:
        self._request = request
        kind = "chatcmpl" if request.chat else "cmpl"
        self._common = {"id": f"{kind}-{secrets.token_hex(12)}", "created": int(time.time()), "model": request.model}
        self._length = [0] * len(request.orders)
        """Characters that were told of each answer."""

    def whole(self, choices: Sequence[ToldChoice]) -> bytes:
        """The answer in one piece."""
        kind = "chat.completion" if self._request.chat else "text_completion"
        told = [self._choice(number, choice) for number, choice in enumerate(choices)]
        return orjson.dumps({**self._common, "object": kind, "choices": told, "usage": self._usage(choices)})

    def first(self) -> bytes:
        """What a stream begins with."""
        if not self._request.chat:
            return b""
        begun = {"role": "assistant", "content": "", "refusal": None}
        return b"".join(self._event(number, delta=begun) for number in range(len(self._request.orders)))

    def piece(self, number: int, part: GenerationPart) -> bytes:
        """A piece of one answer; nothing where there is nothing to say yet."""
        if not (part.text or part.tokens or part.finish):
            return b""
        logprobs = self._logprobs(part.tokens, self._length[number])
        self._length[number] += len(part.text)
        if not self._request.chat:
            return self._event(number, text=part.text, logprobs=logprobs, finish_reason=part.finish)
        said = b""
        if part.text or part.tokens:
            said = self._event(number, delta={"content": part.text}, logprobs=logprobs)
        if part.finish:
            said += self._event(number, delta={}, finish_reason=part.finish)
        return said

    def last(self, choices: Sequence[ToldChoice]) -> bytes:
        """What a stream ends with."""
        counts = b""
        if self._request.usage:
            counts = _data({**self._common, "object": self._kind, "choices": [], "usage": self._usage(choices)})
        return counts + END_OF_STREAM

    @property
    def _kind(self) -> str:
        return "chat.completion.chunk" if self._request.chat else "text_completion"

    def _event(self, number: int, **said: Any) -> bytes:
        choice = {"index": number, "finish_reason": None, "logprobs": None, **said}
        told = {**self._common, "object": self._kind, "choices": [choice]}
        return _data({**told, "usage": None} if self._request.usage else told)

    def _choice(self, number: int, choice: ToldChoice) -> dict[str, Any]:
        told = {
            "index": number,
            "finish_reason": choice.finish,
            "logprobs": self._logprobs(choice.tokens, 0),
        }
        if self._request.chat:
            return {**told, "message": {"role": "assistant", "content": choice.text, "refusal": None}}
        return {**told, "text": choice.text}

    def _logprobs(self, tokens: Sequence[ToldToken], start: int) -> dict[str, Any] | None:
        if not self._request.logprobs:
            return None
        if self._request.chat:
            return {
                "content": [
                    {
                        **_scored(token.text, token.logprob, token.bytes),
                        "top_logprobs": [_scored(text, score, tuple(text.encode())) for text, score in token.top],
                    }
                    for token in tokens
                ]
            }
        ends = [start]
        for token in tokens:
            ends.append(ends[-1] + len(token.text))
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [dict(token.top) if token.logprob is not None else None for token in tokens],
            "text_offset": ends[:-1],
        }

    def _usage(self, choices: Sequence[ToldChoice]) -> dict[str, Any]:
        prompts = choices[:: self._request.choices]  # answers to one prompt read it once
        prompt, made = sum(c.prompt for c in prompts), sum(c.completion for c in choices)
        usage: dict[str, Any] = {
            "prompt_tokens": prompt,
            "completion_tokens": made,
            "total_tokens": prompt + made,
            "prompt_tokens_details": {"cached_tokens": sum(c.cached for c in prompts)},
        }
        if any(order.prediction is not None for order in self._request.orders):
            usage["completion_tokens_details"] = {
                "accepted_prediction_tokens": sum(c.accepted for c in choices),
                "rejected_prediction_tokens": sum(c.rejected for c in choices),
            }
        return usage


class GenerateWriter:
    """Writes the answers of V2's generate extension: text as a whole, or as server-sent events."""

    def __init__(self, model: str, version: str) -> None:
        self._common = {"model_name": model, "model_version": version}

    def whole(self, choices: Sequence[ToldChoice]) -> bytes:
        """The answer in one piece."""
        return orjson.dumps({**self._common, "text_output": choices[0].text})

    def first(self) -> bytes:
        """A stream begins with its first piece."""
        return b""

    def piece(self, number: int, part: GenerationPart) -> bytes:
        """A piece; ``done`` is said in the last one."""
        if not (part.text or part.finish):
            return b""
        return _data({**self._common, "text_output": part.text, "done": part.finish is not None})

    def last(self, choices: Sequence[ToldChoice]) -> bytes:
        """A stream ends with its last piece."""
        return b""


def openai_error(error: ServingError) -> bytes:
    """A refusal as OpenAI's clients read it."""
    return orjson.dumps({"error": _told(str(error), error.status)})


def error_event(text: str, status: int) -> bytes:
    """The same within a stream, whose status was sent before."""
    return _data({"error": _told(text, status)})


def _told(text: str, status: int) -> dict[str, Any]:
    kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"message": text, "type": kind, "param": None, "code": None}


def _scored(text: str, score: float | None, raw: tuple[int, ...]) -> dict[str, Any]:
    return {"token": text, "logprob": score, "bytes": list(raw)}


def _data(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"
