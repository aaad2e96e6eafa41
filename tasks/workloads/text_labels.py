"""Texts with any number of labels each."""

from __future__ import annotations

from collections import Counter
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tasks.readers.kept_columns import Unlabelled
from tasks.readers.labelled_texts import LabelledTexts, divide_texts
from tasks.readers.reading import Reading, counts_text
from tasks.readers.split_tables import Source, read_split_tables, table_names
from tasks.readers.text_lists import list_of, with_lists
from tasks.running.errors import DataReadError
from tasks.running.splits import TARGET, Columns
from tasks.workloads.encoded_texts import (
    VOCABULARY,
    EncodedTexts,
    Layers,
    Network,
    in_one_split,
    new_bag,
    require_network,
)
from tasks.workloads.workload import JACCARD, Metric


class TextLabels(EncodedTexts):
    """One input ``tokens``, INT64 [N, length]; a logit for each label, [N, labels]: above 0 means that a text has it.

    The endpoint takes ``text`` BYTES [N] and names the labels. Needs ``pip install 'winnow-mlops[text]'``.

    Args:
        source: one file or a pattern of files, divided into splits, or one of these per split; see
            :class:`tasks.workloads.text.Text`.
        text: name of the column of texts.
        target: of that of labels: lists in JSON lines and Parquet, where ``[]`` is a text without any.
        separator: what divides the labels in a text, as in CSV: ``";"``; there a text without any is an empty field.
        encoder: folder of a pretrained encoder, as there. Absent: a small one is trained.
        tokens: of a text, at most. ``vocabulary``: tokens of a tokenizer that is trained here.
        seed: of the division into splits.
        unlabelled: what to do about rows without a list: ``refuse`` them, or ``drop`` them.
        delimiter: of CSV, what separates the fields; by default recognised.
    """

    def __init__(
        self,
        source: Source,
        text: str = "text",
        target: str = TARGET,
        separator: str | None = None,
        encoder: str | None = None,
        tokens: int = 64,
        vocabulary: int = VOCABULARY,
        seed: int = 0,
        unlabelled: Unlabelled = "refuse",
        delimiter: str | None = None,
    ) -> None:
        super().__init__(
            source,
            (text,),
            encoder=encoder,
            tokens=tokens,
            vocabulary=vocabulary,
            seed=seed,
            unlabelled=unlabelled,
            delimiter=delimiter,
        )
        if separator == "":
            raise DataReadError("separator '' divides nothing; give what stands between labels, such as ';'")
        self.target = target
        self.separator = separator

    def splits(self) -> dict[str, Columns]:
        targets = {name: self._on_or_off(rows) for name, rows in self._read.labels.items()}
        known = set(self.labels())
        lost = Counter(label for rows in self._read.labels.values() for row in rows for label in list_of(row))
        lost = Counter({label: count for label, count in lost.items() if label not in known})
        says = f"labels that train has not count for no text: {counts_text(lost)}"
        more = Reading(findings=(says,) if lost else ())
        return in_one_split(self._read, self._encoded(), targets, most=self.tokens, more=more)

    def model(self, role: str, network: Network = "encoder", layers: Layers = "all", width: float = 1.0) -> nn.Module:
        """The encoder or a bag of words; arguments as for :meth:`tasks.workloads.text.Text.model`."""
        require_network(network)
        outputs = len(self.labels())
        if network == "bag":
            return new_bag(self._shape, outputs, width)
        return self._new_encoder(outputs, layers, width)

    def metric(self) -> Metric:
        """Of each text, the labels that are rightly given among all that it has or is given."""
        return JACCARD

    def labels(self) -> list[str]:
        return self._known.labels

    def _labels(self) -> list[str]:
        labels = sorted({label for row in self._read.labels["train"] for label in list_of(row)})
        if len(labels) < 2:
            raise DataReadError(
                f"the lists in column {self.target!r} of train hold {f'only {labels[0]!r}' if labels else 'nothing'}; "
                "at least two labels are needed"
            )
        return labels

    def _on_or_off(self, rows: list[str]) -> NDArray[np.int64]:
        """[rows, labels], 1 for the labels that a text has; those that train has not seen are nobody's."""
        codes = {label: code for code, label in enumerate(self.labels())}
        found = np.zeros((len(rows), len(codes)), np.int64)
        for row, labels in enumerate(rows):
            found[row, [codes[label] for label in list_of(labels) if label in codes]] = 1
        return found

    @cached_property
    def _read(self) -> LabelledTexts:
        texts, names = (*self.columns, self.target), table_names(self.source)
        read = read_split_tables(self.source, delimiter=self.delimiter, texts=texts)
        lists = {
            split: with_lists(table, self.target, separator=self.separator, where=names[split])
            for split, table in read.items()
        }
        return divide_texts(lists, self.columns, self.target, seed=self.seed, unlabelled=self.unlabelled, names=names)
