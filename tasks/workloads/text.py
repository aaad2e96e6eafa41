"""Any texts with labels: CSV, Parquet or JSON lines, one file or several, local or s3://."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tasks.readers.class_labels import label_order
from tasks.readers.kept_columns import Unlabelled
from tasks.readers.labelled_texts import LabelledTexts, Row, divide_texts
from tasks.readers.source_parts import in_parts
from tasks.readers.split_tables import Source, read_split_tables, table_names
from tasks.readers.splitting import Divided, in_one_part
from tasks.running.errors import DataReadError
from tasks.running.splits import TARGET, Columns
from tasks.workloads.encoded_texts import (
    PAD,
    VOCABULARY,
    EncodedTexts,
    Known,
    Layers,
    Network,
    in_one_split,
    new_bag,
    require_network,
)
from tasks.workloads.text_parts import TextFacts, TextParts
from tasks.workloads.text_tokenizer import encode, sized, tokenizer_of


class Text(EncodedTexts):
    """One input ``tokens``, INT64 [N, length], filled up with the tokenizer's padding; a class for each text.

    The tokenizer travels with the model: the endpoint takes ``text`` BYTES [N], or [N, 2] for pairs. Needs
    ``pip install 'winnow-mlops[text]'``.

    Args:
        source: one file, or a pattern of files that are read as one (``s3://bucket/texts/*.jsonl``), divided into
            splits, or such a one per split (``{train: a.csv, test: b.csv}``; the splits that are not named are taken
            out of train). One pattern alone may name more texts than the memory holds.
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
        source: Source,
        text: str = "text",
        pair: str | None = None,
        target: str = TARGET,
        encoder: str | None = None,
        tokens: int = 64,
        vocabulary: int = VOCABULARY,
        seed: int = 0,
        unlabelled: Unlabelled = "refuse",
        delimiter: str | None = None,
    ) -> None:
        super().__init__(
            source,
            (text,) if pair is None else (text, pair),
            encoder=encoder,
            tokens=tokens,
            vocabulary=vocabulary,
            seed=seed,
            unlabelled=unlabelled,
            delimiter=delimiter,
        )
        self.target = target
        self._parts: TextParts | None = None
        if isinstance(source, str) and in_parts(source):
            self._parts = TextParts(
                source,
                self.columns,
                target,
                tokens=tokens,
                vocabulary=vocabulary if encoder is None else None,
                seed=seed,
                unlabelled=unlabelled,
                delimiter=delimiter,
            )

    def read(self) -> dict[str, Columns]:
        """The columns as the files have them, by split, or all under ``all``; texts are arrays of str objects."""
        return {**read_split_tables(self.source, delimiter=self.delimiter, texts=self.columns, others=(self.target,))}

    def splits(self) -> dict[str, Columns]:
        if self._parts is not None:
            return in_one_part(self._parts_of(self._parts))
        codes = {label: code for code, label in enumerate(self.labels())}
        targets = {
            name: np.array([codes.get(label, -1) for label in labels], np.int64)
            for name, labels in self._read.labels.items()
        }
        return in_one_split(self._read, self._encoded(), targets, most=self.tokens)

    def partitions(self, folder: Path) -> Iterator[Divided] | None:
        """The splits in parts where the source is a pattern of files."""
        return None if self._parts is None else self._parts_of(self._parts)(folder)

    def known(self) -> dict[str, Any] | None:
        """What the rows of all files tell."""
        return None if self._parts is None else self._parts.facts.model_dump(mode="json")

    def recall(self, known: dict[str, Any]) -> None:
        """Take what :meth:`known` said, and read no files for it."""
        if self._parts is not None:
            self._parts.facts = TextFacts.model_validate(known)

    def model(self, role: str, network: Network = "encoder", layers: Layers = "all", width: float = 1.0) -> nn.Module:
        """The encoder, as it was pretrained where a folder is named; or a bag of words and pairs of words.

        Args:
            network: ``bag`` forgets the order of all but neighbours, and costs a hundredth: what does not beat it
                should not be served.
            layers: that an encoder has: a share of them or how many, evenly spaced, or their numbers from 0; a student
                finds the weights of its teacher's.
            width: scales the features; a pretrained encoder of another width has none of its weights.
        """
        require_network(network)
        outputs = len(self.labels())
        if network == "bag":
            return new_bag(self._shape, outputs, width)
        return self._new_encoder(outputs, layers, width)

    def labels(self) -> list[str]:
        return self._known.labels

    def _learned(self) -> Known:
        if self._parts is None:
            return super()._learned()
        facts = self._parts.facts
        made = facts.tokenizer
        if made:
            made = sized(tokenizer_of(made), tokens=self.tokens, pad=PAD).to_str()
        return Known(list(facts.labels), made)

    def _parts_of(self, parts: TextParts) -> Callable[[Path], Iterator[Divided]]:
        def ids(texts: list[Row]) -> NDArray[np.int64]:
            return encode(self._tokenizer, texts, tokens=self.tokens, pad=self._shape.pad)

        return lambda folder: parts.divided(folder, ids)

    def _labels(self) -> list[str]:
        labels = sorted(set(self._read.labels["train"]), key=label_order)
        if len(labels) < 2:
            raise DataReadError(
                f"column {self.target!r} of train has only the value {labels[0]!r}; at least two classes are needed"
            )
        return labels

    @cached_property
    def _read(self) -> LabelledTexts:
        return divide_texts(
            self.read(),
            self.columns,
            self.target,
            seed=self.seed,
            unlabelled=self.unlabelled,
            names=table_names(self.source),
        )
