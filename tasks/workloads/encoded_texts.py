"""What all workloads of texts share: files become token ids, and an encoder reads those."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, get_args

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tasks.readers.kept_columns import Unlabelled
from tasks.readers.labelled_texts import Row, only_one_split
from tasks.readers.reading import Reading
from tasks.readers.sources import is_pattern, local
from tasks.readers.split_tables import Source
from tasks.readers.splitting import Divided
from tasks.running.errors import DataReadError, SpecError
from tasks.running.splits import TARGET
from tasks.workloads.kept_layers import how_many, named_layers
from tasks.workloads.text_parts import LOST
from tasks.workloads.text_tokenizer import (
    LEAST_VOCABULARY,
    encode,
    new_tokenizer,
    read_tokenizer,
    sized,
    tokenizer_of,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from tasks.workloads.pretrained import Pretrained
    from tasks.workloads.text_encoder import EncoderShape, Pooling

Network = Literal["encoder", "bag"]
Layers = Literal["all", "half", "third"] | int | Sequence[int]
Tokens = NDArray[np.int64]
VOCABULARY = 8192
"""Tokens of a tokenizer that is trained on the texts, at most."""
_SHARES = {"all": 1.0, "half": 1 / 2, "third": 1 / 3}
_SMALL: dict[str, Any] = {"features": 128, "layers": 4, "heads": 4, "hidden": 512, "places": 512}
"""The encoder where no pretrained one is named: little text teaches no more."""
_BAG_FEATURES = 32
PAD = 0
"""Of a tokenizer that is trained here."""


class Known(NamedTuple):
    """``labels`` in their order; ``tokenizer``: as JSON, empty where the encoder has its own."""

    labels: list[str]
    tokenizer: str


_KNOWN: dict[str, Known] = {}
"""Of the texts that this process has read last, by their settings and the state of their files."""


class DividedTexts(Protocol):
    """Texts by split, and where they come from; what is asked about them is somebody else's business."""

    @property
    def texts(self) -> Mapping[str, list[Row]]: ...
    @property
    def source_rows(self) -> Mapping[str, NDArray[Any]]: ...
    @property
    def reading(self) -> Reading: ...


class EncodedTexts(ABC):
    """Base of workloads whose one input is ``tokens``, INT64 [N, length], filled up with the tokenizer's padding.

    Args:
        source: one file, divided into splits, or a file per split.
        columns: of the texts, one or two.
        encoder: folder of a pretrained encoder; None: a small one and its tokenizer are trained on the texts alone.
        tokens: of a text, at most. ``vocabulary``: tokens of a tokenizer that is trained here.
        seed: of the division into splits.
        unlabelled: what to do about rows without a target.
        delimiter: of CSV; by default recognised.
    """

    def __init__(
        self,
        source: Source,
        columns: tuple[str, ...],
        *,
        encoder: str | None,
        tokens: int,
        vocabulary: int,
        seed: int,
        unlabelled: Unlabelled,
        delimiter: str | None,
    ) -> None:
        if unlabelled not in get_args(Unlabelled):
            raise DataReadError(f"unlabelled {unlabelled!r} must be one of {', '.join(get_args(Unlabelled))}")
        if not 4 <= tokens <= 512:
            raise DataReadError(f"tokens {tokens!r} must be from 4 to 512")
        if not LEAST_VOCABULARY <= vocabulary <= 1 << 18:
            raise DataReadError(f"vocabulary {vocabulary!r} must be from {LEAST_VOCABULARY} to {1 << 18}")
        self.source = source
        self.columns = columns
        self.encoder = encoder
        self.tokens = tokens
        self.vocabulary = vocabulary
        self.seed = seed
        self.unlabelled = unlabelled
        self.delimiter = delimiter

    # -- what a workload answers ----------------------------------------------------------------------------------
    def dynamic_dims(self) -> dict[str, dict[int, str]]:
        """The number of tokens may vary from request to request."""
        return {"tokens": {1: "length"}}

    def padding(self) -> dict[str, int]:
        """Where a text has one answer, it does not depend on what fills the row up."""
        return {"tokens": self._shape.pad}

    def prune_hints(self) -> dict[str, Any]:
        return {"ignore": ["head"]}

    def tokenizer(self) -> str:
        """``tokenizer.json``, set to cut and fill up as the model was measured."""
        text: str = self._tokenizer.to_str()
        return text

    @property
    def texts(self) -> int:
        """How many a row is, 1 or 2."""
        return len(self.columns)

    # -- what a class of texts makes of it ------------------------------------------------------------------------
    @property
    @abstractmethod
    def _read(self) -> DividedTexts:
        """Texts by split."""

    def _labels(self) -> list[str]:
        """Names of the answers, by the rows of train."""
        return []

    def _encoded(self) -> dict[str, Tokens]:
        """Ids [rows, tokens] of all texts, by split."""
        return {
            name: encode(self._tokenizer, texts, tokens=self.tokens, pad=self._shape.pad)
            for name, texts in self._read.texts.items()
        }

    def _new_encoder(
        self, outputs: int | None, layers: Layers, width: float, *, pooling: Pooling = "mean"
    ) -> nn.Module:
        """As it was pretrained, where a folder is named, with those of its layers.

        Raises:
            SpecError: ``layers`` is not one of those there are.
        """
        from tasks.workloads.text_encoder import TextEncoder

        shape = self._shape
        if isinstance(layers, str | int):
            kept = how_many(layers, shape.layers, _SHARES, least=1)
            numbers = [n * shape.layers // kept for n in range(kept)]
        else:
            numbers = named_layers(layers, shape.layers)
        model = TextEncoder(_narrowed(shape, width), outputs, numbers, pooling=pooling)
        return model if self.encoder is None or width != 1.0 else self._pretrained.into(model)

    # -- what is read ---------------------------------------------------------------------------------------------
    @cached_property
    def _pretrained(self) -> Pretrained:
        from tasks.workloads.pretrained import read_pretrained

        assert self.encoder is not None
        with local(self.encoder) as folder:
            return read_pretrained(folder, pair=self.texts == 2)

    @cached_property
    def _shape(self) -> EncoderShape:
        from tasks.workloads.pretrained import read_shape
        from tasks.workloads.text_encoder import EncoderShape

        if self.encoder is None:
            known, separator = self._tokenizer, None
            if self.texts == 2:
                separator = known.token_to_id("[SEP]")
            return EncoderShape(vocabulary=known.get_vocab_size(), pad=PAD, separator=separator, **_SMALL)
        with local(self.encoder) as folder:
            shape = read_shape(folder, pair=self.texts == 2)
        if self.tokens > shape.places - shape.first:
            raise DataReadError(
                f"tokens {self.tokens} is more than the {shape.places - shape.first} places that {self.encoder} has"
            )
        return shape

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        if self.encoder is None:
            return tokenizer_of(self._known.tokenizer)
        with local(self.encoder) as folder:
            found = read_tokenizer(folder, rows=self._shape.vocabulary, pad=self._shape.pad)
        return sized(found, tokens=self.tokens, pad=self._shape.pad)

    @cached_property
    def _known(self) -> Known:
        """What every stage asks for, once in a process: to read texts and to train a tokenizer may take a minute."""
        key = _state(self)
        if key is None:
            return self._learned()
        if key not in _KNOWN:
            _KNOWN.clear()  # one run has one workload
            _KNOWN[key] = self._learned()
        return _KNOWN[key]

    def _learned(self) -> Known:
        labels = self._labels()
        if self.encoder is not None:
            return Known(labels, "")
        texts = (text for row in self._read.texts["train"] for text in row)
        made = sized(new_tokenizer(texts, size=self.vocabulary), tokens=self.tokens, pad=PAD)
        return Known(labels, made.to_str())


def in_one_split(
    read: DividedTexts,
    tokens: Mapping[str, Tokens],
    targets: Mapping[str, NDArray[Any]],
    *,
    most: int,
    more: Reading = Reading(),  # noqa: B008 - frozen
) -> Divided:
    """The splits, without rows whose tokens are those of other texts in another split.

    Args:
        tokens: ids [rows, length] by split, cut at ``most`` tokens. ``targets``: [rows, ...] by split.
        more: what is to be said besides how the files were read.
    """
    kept = only_one_split(tokens, read.texts)
    lost = sum(int((~rows).sum()) for rows in kept.values())
    more += Reading(findings=(LOST.format(lost=lost, tokens=most),) if lost else ())
    return Divided(
        {name: {"tokens": tokens[name][rows], TARGET: targets[name][rows]} for name, rows in kept.items()},
        {name: read.source_rows[name][rows] for name, rows in kept.items()},
        read.reading + more,
    )


def new_bag(shape: EncoderShape, outputs: int, width: float) -> nn.Module:
    """The bag of words that an encoder has to beat; ``width`` scales its features."""
    from tasks.workloads.architectures import scaled
    from tasks.workloads.text_encoder import TokenBag

    return TokenBag(shape.vocabulary, scaled(_BAG_FEATURES, width), outputs, pad=shape.pad)


def require_network(network: str) -> None:
    """SpecError where it is none of :data:`Network`."""
    if network not in get_args(Network):
        raise SpecError(f"network {network!r} must be one of {', '.join(get_args(Network))}")


def _state(workload: EncodedTexts) -> str | None:
    """Settings and the state of the files; None where it cannot be told whether they have changed."""
    names = [workload.source] if isinstance(workload.source, str) else [*workload.source.values()]
    if any(name.startswith("s3://") or is_pattern(name) for name in names):
        return None
    states = list[Any]()
    for name in names:
        with suppress(DataReadError), local(name) as path:
            states.append((path.stat().st_mtime_ns, path.stat().st_size))
    settings = {name: value for name, value in vars(workload).items() if not name.startswith("_")}
    return repr((type(workload).__qualname__, sorted(settings.items()), states))


def _narrowed(shape: EncoderShape, width: float) -> EncoderShape:
    heads = max(1, round(shape.heads * width))
    per_head = shape.features // shape.heads
    return replace(shape, features=heads * per_head, heads=heads, hidden=max(1, round(shape.hidden * width)))
