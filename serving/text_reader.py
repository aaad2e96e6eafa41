"""Texts to the token ids that a model takes, by the tokenizer that travels with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from model_registry.text_input import TEXT, TEXT_INPUT, TOKENIZER, TextInput, first_pieces
from model_registry.variant import TensorSpec, Variant
from serving.exceptions import EngineLoadError
from serving.tensors import Array
from serving.verified_file import read_verified

WORDS = "words of the tokens"
"""Name of what travels beside the ids to whoever answers by word; no graph has an input of this name."""


class TextReader:
    """Makes ``text`` BYTES [N], or [N, 2] for pairs, the ids [N, length] of the graph's input.

    Where the answer is for each word it adds :data:`WORDS`, INT64 [N, length]: the number of the word that each token
    begins, -1 for all others.

    The length is that of the longest row, filled up to a multiple as the tokenizer says; what is longer than the model
    was measured with is cut. Bytes that are not UTF-8 become the replacement character.

    Args:
        tokenizer: bytes of tokenizer.json; ``source``: of the :class:`TextInput` beside it.

    Attributes:
        spec: of the input as clients see it.

    Raises:
        ImportError: the library tokenizers is missing.
        ValueError: one of the files is not what it should be.
    """

    def __init__(self, tokenizer: bytes, source: bytes) -> None:
        from tokenizers import Tokenizer

        self._source = TextInput.model_validate_json(source)
        if self._source.words and self._source.texts != 1:
            raise ValueError("answers for each word are those of one text, not of pairs")
        try:
            self._tokenizer: Any = Tokenizer.from_buffer(tokenizer)
        except Exception as error:  # the library has no class of its own
            raise ValueError(f"no tokenizer: {error}") from error
        self.spec = TensorSpec(name=TEXT, datatype="BYTES", shape=(-1,) if self._source.texts == 1 else (-1, 2))

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The graph's inputs; ids that are given as such stay as they are."""
        if TEXT not in inputs:
            return dict(inputs)
        given = inputs[TEXT]
        rows = [_decoded(row) for row in given] if self._source.texts == 1 else [tuple(map(_decoded, r)) for r in given]
        encode = self._tokenizer.encode_batch if self._source.words else self._tokenizer.encode_batch_fast
        whole = encode(rows)
        shape = (len(rows), len(whole[0].ids) if whole else 1)
        found = {self._source.input: np.array([encoded.ids for encoded in whole], np.int64).reshape(shape)}
        if self._source.words:
            begins = [first_pieces(str(row), encoded.offsets) for row, encoded in zip(rows, whole, strict=True)]
            found[WORDS] = np.array(begins, np.int64).reshape(shape)
        return found

    @property
    def input(self) -> str:
        """The graph's input that the ids go to."""
        return self._source.input

    def tokens_read(self, inputs: Mapping[str, Array]) -> int:
        """How many ids of the graph's inputs are more than filling."""
        ids, told = inputs[self._source.input], self._tokenizer.padding
        return ids.size if told is None else int(np.count_nonzero(ids != told["pad_id"]))

    @property
    def filling(self) -> tuple[int, int] | None:
        """The id that rows of a request are filled up with, and the multiple of tokens up to which they are.

        None where an answer is as long as its row, or the tokenizer fills nothing up.
        """
        told = self._tokenizer.padding
        if self._source.words or told is None:
            return None
        return int(told["pad_id"]), int(told["pad_to_multiple_of"] or 1)


def load_text_reader(folder: Path, variant: Variant) -> TextReader | None:
    """What reads the variant's text; None where it takes none.

    Raises:
        ManifestMismatch: a file is not the one of the manifest.
        EngineLoadError: the library is missing, or a file is not what it should be.
    """
    files = {file.path: file for file in variant.files if file.path in (TOKENIZER, TEXT_INPUT)}
    if TEXT_INPUT not in files:
        return None
    if TOKENIZER not in files:
        raise EngineLoadError(f"variant {variant.name!r} has {TEXT_INPUT} but no {TOKENIZER}")
    try:
        reader = TextReader(*(read_verified(folder, files[name]) for name in (TOKENIZER, TEXT_INPUT)))
    except ImportError as error:
        raise EngineLoadError(
            f"variant {variant.name!r} reads text, for which the library tokenizers is needed: "
            "pip install 'winnow-mlops[text]'"
        ) from error
    except ValueError as error:
        raise EngineLoadError(f"how variant {variant.name!r} reads text cannot be read: {error}") from error
    specs = [(spec.name, spec.datatype, len(spec.shape)) for spec in variant.inputs]
    if specs != [(reader.input, "INT64", 2)]:
        raise EngineLoadError(
            f"variant {variant.name!r} reads text into {reader.input!r}, INT64 [N, length]; its inputs are {specs}"
        )
    return reader


def _decoded(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode(errors="replace")
