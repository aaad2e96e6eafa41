"""Any texts with labels: CSV, Parquet or JSON lines, local or s3://."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
from torch import nn

from tasks.readers.kept_columns import Unlabelled
from tasks.readers.labelled_texts import LabelledTexts, divide_texts, only_one_split
from tasks.readers.reading import Reading
from tasks.readers.sources import local
from tasks.readers.splitting import Divided
from tasks.running.errors import DataReadError, SpecError
from tasks.running.splits import SPLITS, TARGET, Columns
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
    from tasks.workloads.text_encoder import EncoderShape

Network = Literal["encoder", "bag"]
Layers = Literal["all", "half", "third"]
_SHARES = {"all": 1.0, "half": 1 / 2, "third": 1 / 3}
_VOCABULARY = 8192
"""Tokens of a tokenizer that is trained on the texts, at most."""
_SMALL: dict[str, Any] = {"features": 128, "layers": 4, "heads": 4, "hidden": 512, "places": 512}
"""The encoder where no pretrained one is named: little text teaches no more."""
_LOST = (
    "{lost} rows were left out: cut at {tokens} tokens, or without what the tokenizer ignores, they are the texts of "
    "rows in another split"
)
_BAG_FEATURES = 32
_PAD = 0
"""Of a tokenizer that is trained here."""


class _Known(NamedTuple):
    """``labels`` in their order; ``tokenizer``: as JSON, empty where the encoder has its own."""

    labels: list[str]
    tokenizer: str


_KNOWN: dict[str, _Known] = {}
"""Of the texts that this process has read last, by their settings and the state of their files."""


class Text:
    """One input ``tokens``, INT64 [N, length], filled up with the tokenizer's padding; a class for each text.

    The tokenizer travels with the model: the endpoint takes ``text`` BYTES [N], or [N, 2] for pairs. Needs
    ``pip install 'winnow-mlops[text]'``.

    Args:
        source: one file, divided into splits, or a file per split (``{train: a.csv, test: b.csv}``; the splits that
            are not named are taken out of train).
        text: name of the column of texts. ``pair``: of that of second texts, where a row is two of them.
        target: name of the column to predict: text or whole numbers.
        encoder: folder of a pretrained encoder, beside the spec, absolute or s3://, as ``save_pretrained`` of
            transformers writes it (types bert, roberta, distilbert; safetensors only). Absent: a small encoder and its
            tokenizer are trained on the texts alone.
        tokens: of a text, at most; what is longer is cut. Latency is measured at this length.
        vocabulary: tokens of a tokenizer that is trained here.
        seed: of the division into splits.
        unlabelled: what to do about rows without a target: ``refuse`` them, or ``drop`` them.
        delimiter: of CSV, what separates the fields; by default recognised.
    """

    def __init__(
        self,
        source: str | Mapping[str, str],
        text: str = "text",
        pair: str | None = None,
        target: str = TARGET,
        encoder: str | None = None,
        tokens: int = 64,
        vocabulary: int = _VOCABULARY,
        seed: int = 0,
        unlabelled: Unlabelled = "refuse",
        delimiter: str | None = None,
    ) -> None:
        if unlabelled not in get_args(Unlabelled):
            raise DataReadError(f"unlabelled {unlabelled!r} must be one of {', '.join(get_args(Unlabelled))}")
        if not 4 <= tokens <= 512:
            raise DataReadError(f"tokens {tokens!r} must be from 4 to 512")
        if not LEAST_VOCABULARY <= vocabulary <= 1 << 18:
            raise DataReadError(f"vocabulary {vocabulary!r} must be from {LEAST_VOCABULARY} to {1 << 18}")
        self.source = source
        self.columns = (text,) if pair is None else (text, pair)
        self.target = target
        self.encoder = encoder
        self.tokens = tokens
        self.vocabulary = vocabulary
        self.seed = seed
        self.unlabelled = unlabelled
        self.delimiter = delimiter

    def read(self) -> dict[str, Columns]:
        """The columns as the files have them, by split, or all under ``all``; texts are arrays of str objects."""
        from tasks.readers.tables import read_table

        if isinstance(self.source, str):
            return {"all": read_table(self.source, delimiter=self.delimiter, texts=self.columns)}
        unknown = sorted(set(self.source) - set(SPLITS))
        if unknown:
            raise DataReadError(f"source names the splits {unknown}; known are {', '.join(SPLITS)}")
        return {
            split: read_table(source, delimiter=self.delimiter, texts=self.columns)
            for split, source in self.source.items()
        }

    # -- what a workload answers ----------------------------------------------------------------------------------
    def splits(self) -> dict[str, Columns]:
        read, codes = self._read, {label: code for code, label in enumerate(self.labels())}
        tokens = {
            name: encode(self._tokenizer, texts, tokens=self.tokens, pad=self._shape.pad)
            for name, texts in read.texts.items()
        }
        kept = only_one_split(tokens, read.texts)
        targets = {name: np.array([codes.get(label, -1) for label in read.labels[name]], np.int64) for name in tokens}
        lost = sum(int((~rows).sum()) for rows in kept.values())
        more = Reading(findings=(_LOST.format(lost=lost, tokens=self.tokens),) if lost else ())
        return Divided(
            {name: {"tokens": tokens[name][rows], TARGET: targets[name][rows]} for name, rows in kept.items()},
            {name: read.source_rows[name][rows] for name, rows in kept.items()},
            read.reading + more,
        )

    def model(self, role: str, network: Network = "encoder", layers: Layers = "all", width: float = 1.0) -> nn.Module:
        """The encoder, as it was pretrained where a folder is named; or a bag of words and pairs of words.

        Args:
            network: ``bag`` forgets the order of all but neighbours, and costs a hundredth: what does not beat it
                should not be served.
            layers: that an encoder has, evenly spaced; a student finds the weights of its teacher's.
            width: scales the features; a pretrained encoder of another width has none of its weights.
        """
        from tasks.workloads.architectures import scaled
        from tasks.workloads.text_encoder import TextEncoder, TokenBag

        outputs, shape = len(self.labels()), self._shape
        if network == "bag":
            return TokenBag(shape.vocabulary, scaled(_BAG_FEATURES, width), outputs, pad=shape.pad)
        if network != "encoder":
            raise SpecError(f"network {network!r} must be one of {', '.join(get_args(Network))}")
        if layers not in _SHARES:
            raise SpecError(f"layers {layers!r} must be one of {', '.join(_SHARES)}")
        kept = max(1, round(shape.layers * _SHARES[layers]))
        model = TextEncoder(_narrowed(shape, width), outputs, [n * shape.layers // kept for n in range(kept)])
        return model if self.encoder is None or width != 1.0 else self._pretrained.into(model)

    def labels(self) -> list[str]:
        return self._known.labels

    def dynamic_dims(self) -> dict[str, dict[int, str]]:
        """The number of tokens may vary from request to request."""
        return {"tokens": {1: "length"}}

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
            return EncoderShape(vocabulary=known.get_vocab_size(), pad=_PAD, separator=separator, **_SMALL)
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
    def _known(self) -> _Known:
        """What every stage asks for, once in a process: to read texts and to train a tokenizer may take a minute."""
        key = _state(self)
        if key is None:
            return self._learned()
        if key not in _KNOWN:
            _KNOWN.clear()  # one run has one workload
            _KNOWN[key] = self._learned()
        return _KNOWN[key]

    def _learned(self) -> _Known:
        labels = sorted(set(self._read.labels["train"]), key=_as_number)
        if len(labels) < 2:
            raise DataReadError(
                f"column {self.target!r} of train has only the value {labels[0]!r}; at least two classes are needed"
            )
        if self.encoder is not None:
            return _Known(labels, "")
        texts = (text for row in self._read.texts["train"] for text in row)
        made = sized(new_tokenizer(texts, size=self.vocabulary), tokens=self.tokens, pad=_PAD)
        return _Known(labels, made.to_str())

    @cached_property
    def _read(self) -> LabelledTexts:
        names = {"all": self.source} if isinstance(self.source, str) else self.source
        return divide_texts(
            self.read(),
            self.columns,
            self.target,
            seed=self.seed,
            unlabelled=self.unlabelled,
            names={split: f"{name}" if split == "all" else f"{name} ({split})" for split, name in names.items()},
        )


def _state(workload: Text) -> str | None:
    """Settings and the state of the files; None where it cannot be told whether they have changed."""
    names = [workload.source] if isinstance(workload.source, str) else [*workload.source.values()]
    if any(name.startswith("s3://") for name in names):
        return None
    states = list[Any]()
    for name in names:
        with suppress(DataReadError), local(name) as path:
            states.append((path.stat().st_mtime_ns, path.stat().st_size))
    settings = {name: value for name, value in vars(workload).items() if not name.startswith("_")}
    return repr((type(workload).__qualname__, sorted(settings.items()), states))


def _as_number(label: str) -> tuple[int, str]:
    """Sorts whole numbers by their value, before texts."""
    return (int(label), "") if label.lstrip("-").isdecimal() else (1 << 62, label)


def _narrowed(shape: EncoderShape, width: float) -> EncoderShape:
    heads = max(1, round(shape.heads * width))
    per_head = shape.features // shape.heads
    return replace(shape, features=heads * per_head, heads=heads, hidden=max(1, round(shape.hidden * width)))
