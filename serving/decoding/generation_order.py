"""What the front asks an engine for when text is to be continued, and what it hears of it, piece by piece."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from model_registry.variant import Frozen

Finish = Literal["stop", "length"]


class GenerationOrder(Frozen):
    """One text to be continued once.

    Either ``prompt`` (text or token ids) or ``messages`` (a conversation, by the model's own template).
    """

    prompt: str | tuple[int, ...] | None = None
    messages: tuple[dict[str, Any], ...] | None = None
    max_tokens: int | None = Field(default=None, ge=0)
    """None: as many as the context has room for."""
    temperature: float = Field(default=1.0, ge=0, le=2)
    """0: always the likeliest token."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = Field(default=None, ge=0, le=20)
    """How many likely tokens are named beside each chosen one; None: no log-probabilities at all."""
    echo: bool = False
    """Whether the prompt is part of the answer."""
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    logit_bias: dict[int, float] = Field(default_factory=dict)
    ignore_end: bool = False
    """Go on past tokens that end a text; for measurements."""
    json_schema: str | None = None
    """The JSON schema that the answer must fit."""
    prediction: str | None = None
    """What the answer may be, in whole or in parts. With one, tokens are guessed and verified, several at a time; an
    empty one guesses by the prompt alone. None: nothing is guessed."""


class ToldToken(Frozen):
    """A token with its log-probability (None for the first of a text), and the likeliest ones in its place."""

    text: str
    bytes: tuple[int, ...]
    logprob: float | None
    top: tuple[tuple[str, float], ...] = ()


class GenerationPart(Frozen):
    """A piece of an answer. ``finish`` is set in the last one; the counts are of all so far."""

    text: str = ""
    tokens: tuple[ToldToken, ...] = ()
    finish: Finish | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    accepted_tokens: int = 0
    rejected_tokens: int = 0
    """Guessed ones, by what became of them."""


class GenerationLimits(Frozen):
    """What a version that continues text can do, as the front is told when it is loaded."""

    context: int
    """Tokens of a text, prompt and answer."""
    chat: bool
    """Whether it has a template for conversations."""
