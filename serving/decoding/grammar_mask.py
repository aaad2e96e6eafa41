"""Answers that fit a JSON schema: tokens that would break it cannot come.

The engine for grammars is llguidance (github.com/guidance-ai/llguidance).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np

from model_registry.decoder_form import DecoderForm
from serving.exceptions import InvalidRequest
from serving.tensors import Array

_TOKENIZERS: dict[int, Any] = {}
"""llguidance's view of a tokenizer, made once in a process: it takes more than half a second."""


class GrammarMask:
    """Where an answer stands in its grammar."""

    def __init__(self, matcher: Any, vocabulary: int, ends: Sequence[int]) -> None:
        self._matcher, self._vocabulary, self._ends = matcher, vocabulary, list(ends)

    def __call__(self, logits: Array) -> None:
        """Rule out what may not come next."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, bitorder="little")[: self._vocabulary]
        if not allowed.any():  # nothing can follow: the text ends
            allowed[self._ends] = 1
        logits[: self._vocabulary][allowed == 0] = -np.inf
        logits[self._vocabulary :] = -np.inf

    def accept(self, token: int) -> bool:
        """Go on by one token; False once nothing can follow."""
        self._matcher.consume_token(token)
        return not self._matcher.is_stopped()


def schema_mask(schema: str, tokenizer: Any, form: DecoderForm) -> GrammarMask:
    """A mask for answers that fit the schema, with no white space between their parts to get lost in.

    Raises:
        InvalidRequest: the schema is none, the grammar engine cannot take it, or there is none; says why.
    """
    if importlib.util.find_spec("llguidance") is None:
        raise InvalidRequest("response_format needs the library llguidance: pip install 'winnow-mlops[llm]'")
    from llguidance import LLMatcher, LLTokenizer

    key = id(tokenizer)
    if key not in _TOKENIZERS:
        _TOKENIZERS[key] = LLTokenizer(tokenizer.to_str(), n_vocab=form.vocabulary, eos_token=list(form.end) or None)
    known = _TOKENIZERS[key]
    try:
        grammar = LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": False})
        wrong = LLMatcher.validate_grammar(grammar, known)
    except ValueError as error:
        wrong = str(error)
    if wrong:
        raise InvalidRequest(f"response_format cannot be kept: {wrong}")
    return GrammarMask(LLMatcher(known, grammar), known.vocab_size, form.end)
