"""The decoder of a workload that brings none: small, fresh, with a tokenizer that is trained on the texts alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tasks.readers.reading import Reading
from tasks.workloads.text_tokenizer import END, new_causal_tokenizer, tokenizer_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from tasks.workloads.causal_decoder import DecoderShape

_LAYERS: dict[str, Any] = {"features": 192, "layers": 4, "heads": 6, "kv_heads": 2, "head_size": 32, "hidden": 512}
"""Little text teaches no more."""
_BASE, _VOCABULARY = 10_000.0, 4096
_TRAINED: dict[int, str] = {}


class SmallDecoder:
    """What :class:`tasks.workloads.brought_decoder.BroughtDecoder` is of a pretrained one.

    Args:
        texts: of training.
        vocabulary: tokens of the tokenizer, at most; None: 4096.
        tokens: of a row.
    """

    pretrained: None = None
    reading = Reading()

    def __init__(self, texts: Callable[[], Sequence[str]], vocabulary: int | None, *, tokens: int) -> None:
        self._texts, self._vocabulary, self._tokens = texts, vocabulary or _VOCABULARY, tokens

    @cached_property
    def shape(self) -> DecoderShape:
        from tasks.workloads.causal_decoder import DecoderShape
        from tasks.workloads.decoder_folder import frequencies

        return DecoderShape(
            vocabulary=self.tokenizer.get_vocab_size(),
            context=max(1024, self._tokens),
            rotation=frequencies(_LAYERS["head_size"], _BASE),
            end=(int(self.tokenizer.token_to_id(END) or 0),),
            **_LAYERS,
        )

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return tokenizer_of(_trained(tuple(self._texts()), self._vocabulary))

    def known(self) -> None:
        """The same texts give the same tokenizer."""

    def recall(self, known: Mapping[str, Any]) -> None:
        """There is nothing that :meth:`known` said."""

    def chat_template(self) -> None:
        """It has none."""


def _trained(texts: tuple[str, ...], size: int) -> str:
    """The tokenizer of these texts as JSON: every stage asks for it, and a process trains it once."""
    key = hash((texts, size))
    if key not in _TRAINED:
        _TRAINED.clear()  # one run has one workload
        _TRAINED[key] = new_causal_tokenizer(texts, size=size).to_str()
    return _TRAINED[key]
