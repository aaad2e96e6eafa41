"""From text to token ids: a tokenizer that a folder has, or one that is trained on the training texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from model_registry.text_input import first_pieces
from tasks.running.errors import DataReadError, SpecError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

INSTALL = "pip install 'winnow-mlops[text]'"
BUCKET = 16
"""Lengths that a served model meets are multiples of this number of tokens: padding costs time, many lengths memory."""
LEAST_VOCABULARY = 300
"""Of a tokenizer that is trained: all bytes, special tokens, and a few pieces."""
_SPECIAL = ["[PAD]", "[CLS]", "[SEP]"]
END = "<|endoftext|>"
"""Ends a text of a model that continues it."""


def new_tokenizer(texts: Iterable[str], *, size: int) -> Tokenizer:
    """A byte-level BPE tokenizer of lower-case text, trained on these texts: nothing is unknown to it.

    The same texts give the same one, in whatever process; WordPiece, as the library trains it, numbers its pieces in
    the order of a hash table (tokenizers 0.23).

    Args:
        size: tokens that it knows at most, 260 for bytes and special ones among them.
    """
    tokenizers = tokenizers_library()
    made: Tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.NFKC(), tokenizers.normalizers.Lowercase()]
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=_SPECIAL,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, made.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return made


def new_causal_tokenizer(texts: Iterable[str], *, size: int) -> Tokenizer:
    """A byte-level BPE tokenizer that gives back every text as it was, trained on these texts.

    Args:
        size: tokens that it knows at most, 257 for bytes and :data:`END` (id 0) among them.
    """
    tokenizers = tokenizers_library()
    made: Tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return made


def read_tokenizer(folder: Path, *, rows: int, pad: int | None) -> Tokenizer:
    """The tokenizer of a Hugging Face folder.

    Args:
        rows: of the model's table of tokens. ``pad``: the id that fills short texts up, as the model has it; None
            where none is.

    Raises:
        DataReadError: there is none that can be read, or it is not the model's.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise DataReadError(
            f"{folder} has no tokenizer.json; write one with transformers: "
            f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
        )
    try:
        found: Tokenizer = tokenizers_library().Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        raise DataReadError(f"{file} is no tokenizer: {error}") from error
    most = max(found.get_vocab().values(), default=-1)
    if most >= rows:
        raise DataReadError(
            f"{file} gives ids up to {most}, but the model's table of tokens has {rows} rows: it is another model's "
            "tokenizer; save both into one folder with save_pretrained"
        )
    if pad is not None and found.id_to_token(pad) is None:
        raise DataReadError(f"{file} has no token with the id {pad}, which config.json calls pad_token_id")
    return found


def tokenizer_of(text: str) -> Tokenizer:
    """From its JSON."""
    found: Tokenizer = tokenizers_library().Tokenizer.from_str(text)
    return found


def sized(tokenizer: Tokenizer, *, tokens: int, pad: int) -> Tokenizer:
    """The tokenizer, set to cut texts at that number of tokens and to fill them up to a multiple of :data:`BUCKET`."""
    tokenizer.enable_truncation(max_length=tokens)
    bucket = BUCKET if tokens % BUCKET == 0 else None
    tokenizer.enable_padding(pad_id=pad, pad_token=tokenizer.id_to_token(pad), pad_to_multiple_of=bucket)
    return tokenizer


def encode(tokenizer: Tokenizer, rows: Sequence[tuple[str, ...]], *, tokens: int, pad: int) -> NDArray[np.int64]:
    """Ids [rows, tokens] of rows of one text or two, filled up with ``pad``, by a tokenizer that was ``sized``."""
    found = np.full((len(rows), tokens), pad, np.int64)
    whole = tokenizer.encode_batch_fast([row if len(row) == 2 else row[0] for row in rows])
    for ids, encoded in zip(found, whole, strict=True):
        ids[: len(encoded.ids)] = encoded.ids
    return found


def word_numbers(tokenizer: Tokenizer, texts: Sequence[str], *, tokens: int) -> NDArray[np.int64]:
    """[rows, tokens]: the number of the word that each token begins, -1 for all others; spaces divide words."""
    found = np.full((len(texts), tokens), -1, np.int64)
    for numbers, text, encoded in zip(found, texts, tokenizer.encode_batch(list(texts)), strict=True):
        begins = first_pieces(text, encoded.offsets)
        numbers[: len(begins)] = begins
    return found


def tokenizers_library() -> Any:
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.normalizers
        import tokenizers.pre_tokenizers
        import tokenizers.processors
        import tokenizers.trainers
    except ImportError as error:
        raise SpecError(f"text needs the library tokenizers, which is not installed: {INSTALL}") from error
    return tokenizers
