"""A pretrained decoder that a user brings: a folder of transformers, a GGUF file, or a folder with one."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tasks.readers.reading import Reading
from tasks.readers.sources import local
from tasks.running.errors import DataReadError
from tasks.workloads.decoder_folder import PretrainedDecoder, read_decoder_folder, read_decoder_shape
from tasks.workloads.gguf_decoder import GgufFile, read_chat_template
from tasks.workloads.text_tokenizer import read_tokenizer
from tasks.workloads.trimmed_tokenizer import needed_tokens, only_tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from tasks.workloads.causal_decoder import DecoderShape

_READ: dict[tuple[str, int, bytes], PretrainedDecoder] = {}
"""The decoder that this process has read last, by its place, its time and the tokens that are kept: to make floats of a
GGUF file takes seconds."""
_KEPT = "kept"


class BroughtDecoder:
    """Shape, tokenizer, weights and chat template, with as many tokens as are wanted.

    Args:
        place: local, s3:// or package:NAME.
        vocabulary: tokens that are kept, at most; None: all.
        texts: by split, which say what tokens are needed.
        tokens: of a row; the decoder must have as many places.
    """

    def __init__(
        self, place: str, vocabulary: int | None, texts: Callable[[], Mapping[str, Sequence[str]]], *, tokens: int
    ) -> None:
        self.place, self.vocabulary, self._texts, self._tokens = place, vocabulary, texts, tokens
        self.reading = Reading()
        """What was left out, once tokens were looked at."""

    @cached_property
    def shape(self) -> DecoderShape:
        return self._whole[0] if self._kept is None else self._whole[0].with_tokens(self._kept)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return self._whole[1] if self._kept is None else only_tokens(self._whole[1], self._kept)

    def known(self) -> dict[str, Any] | None:
        """Which tokens are kept, if not all: texts that change later must not change what a number stands for."""
        if self._kept is None:
            return None
        found = np.zeros(self._whole[0].vocabulary, bool)
        found[self._kept] = True
        return {_KEPT: b64encode(np.packbits(found).tobytes()).decode()}

    def recall(self, known: Mapping[str, Any]) -> None:
        """What :meth:`known` said."""
        self._kept = np.flatnonzero(np.unpackbits(np.frombuffer(b64decode(known[_KEPT]), np.uint8)))

    @cached_property
    def pretrained(self) -> PretrainedDecoder:
        with local(self.place) as path:
            file = _gguf(path)
            kept = self._kept
            told = (file or path / "config.json").stat().st_mtime_ns if path.exists() else 0
            state = (self.place, told, b"" if kept is None else kept.tobytes())
            if state not in _READ:
                _READ.clear()
                whole = read_decoder_folder(path) if file is None else GgufFile(file).decoder()
                _READ[state] = whole if kept is None else whole.with_tokens(kept)
            return _READ[state]

    def chat_template(self) -> str | None:
        """How a conversation becomes a prompt, if the decoder says so."""
        with local(self.place) as path:
            file = _gguf(path)
            return read_chat_template(path) if file is None else GgufFile(file).chat_template()

    @cached_property
    def _whole(self) -> tuple[DecoderShape, Tokenizer]:
        """Shape and tokenizer as they come."""
        with local(self.place) as path:
            file = _gguf(path)
            shape = read_decoder_shape(path) if file is None else GgufFile(file).shape()
            if self._tokens > shape.context:
                raise DataReadError(
                    f"tokens {self._tokens} is more than the {shape.context} of context that {self.place} has"
                )
            folder = path if file is None else file.parent
            if file is None or (folder / "tokenizer.json").is_file():
                tokenizer = read_tokenizer(folder, rows=shape.vocabulary, pad=None)
            else:
                tokenizer = GgufFile(file).tokenizer()
        tokenizer.no_padding()  # a file may say both, for whoever made it; texts are read whole here
        tokenizer.no_truncation()
        return shape, tokenizer

    @cached_property
    def _kept(self) -> NDArray[np.int64] | None:
        """Numbers of the tokens that are left, ascending; None: all of them."""
        shape, whole = self._whole
        if self.vocabulary is None or self.vocabulary >= shape.vocabulary:
            return None
        texts = self._texts()
        found = needed_tokens(
            whole,
            texts["train"],
            size=self.vocabulary,
            always={number for number in (shape.begin, *shape.end) if number is not None},
            other=texts["calibration"],
        )
        self.reading = found.reading
        return found.kept


def _gguf(path: Path) -> Path | None:
    """The GGUF file that is named, or the only one of the folder; None for a folder of transformers."""
    if path.is_file():
        return path
    files = sorted(path.glob("*.gguf"))
    if len(files) > 1 and not (path / "config.json").is_file():
        raise DataReadError(f"{path} holds {len(files)} GGUF files; name one of them: {files[0].name}")
    return files[0] if files and not (path / "config.json").is_file() else None
