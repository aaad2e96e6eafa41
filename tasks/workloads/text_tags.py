"""Texts with a tag for each word."""

from __future__ import annotations

from collections import Counter
from functools import cached_property, partial
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tasks.readers.kept_columns import Unlabelled
from tasks.readers.labelled_texts import LabelledTexts, divide_texts
from tasks.readers.reading import Reading, counts_text
from tasks.readers.split_tables import Source, read_split_tables, table_names
from tasks.readers.text_lists import joined_words, list_of, with_lists
from tasks.running.errors import DataReadError
from tasks.running.splits import Columns
from tasks.workloads.encoded_texts import VOCABULARY, EncodedTexts, Layers, in_one_split
from tasks.workloads.sample_scores import pixel_accuracy_scores
from tasks.workloads.span_scores import marks_spans, span_f1_scores
from tasks.workloads.text_tokenizer import word_numbers
from tasks.workloads.workload import Metric

TagMetric = Literal["span_f1", "token_accuracy"]
_NO_WORD = -1
"""The target where no word begins: it counts in no loss and in no metric."""


class TextTags(EncodedTexts):
    """One input ``tokens``, INT64 [N, length]; a logit for each tag and token, [N, tags, length].

    A word has the tag of its first token. The endpoint takes ``text`` BYTES [N], in which spaces divide the words, and
    answers a tag for each word. Needs ``pip install 'winnow-mlops[text]'``.

    Args:
        source: one file or a pattern of files of JSON lines or Parquet, divided into splits, or one of these per split.
        text: name of the column of texts, which are lists of words.
        target: of that of tags, lists as long.
        metric: ``span_f1`` of each text, where the tags mark spans (``B-``, ``I-`` and ``O``) and by default there; or
            ``token_accuracy``, the share of its words with the right tag. Their means over the texts count.
        encoder: folder of a pretrained encoder; see :class:`tasks.workloads.text.Text`. Absent: a small one is trained.
        tokens: of a text, at most; words behind them have no tag. ``vocabulary``: tokens of a tokenizer that is trained
            here.
        seed: of the division into splits.
        unlabelled: what to do about rows without tags: ``refuse`` them, or ``drop`` them.
    """

    def __init__(
        self,
        source: Source,
        text: str = "tokens",
        target: str = "tags",
        metric: TagMetric | None = None,
        encoder: str | None = None,
        tokens: int = 64,
        vocabulary: int = VOCABULARY,
        seed: int = 0,
        unlabelled: Unlabelled = "refuse",
    ) -> None:
        super().__init__(
            source,
            (text,),
            encoder=encoder,
            tokens=tokens,
            vocabulary=vocabulary,
            seed=seed,
            unlabelled=unlabelled,
            delimiter=None,
        )
        if metric is not None and metric not in get_args(TagMetric):
            raise DataReadError(f"metric {metric!r} must be one of {', '.join(get_args(TagMetric))}")
        self.target = target
        self.judged_by = metric

    def splits(self) -> dict[str, Columns]:
        unknown = Counter[str]()
        targets = {name: self._by_token(name, unknown) for name in self._read.texts}
        more = (f"{unknown.total()} words have tags that train has not, and do not count: {counts_text(unknown)}",)
        found = Reading(findings=more if unknown else ())
        return in_one_split(self._read, self._encoded(), targets, most=self.tokens, more=found)

    def model(self, role: str, layers: Layers = "all", width: float = 1.0) -> nn.Module:
        """The encoder with an answer for each token; arguments as for :meth:`tasks.workloads.text.Text.model`."""
        return self._new_encoder(len(self.labels()), layers, width, pooling="each")

    def padding(self) -> dict[str, int]:
        """Nothing: an answer is as long as its row."""
        return {}

    def metric(self) -> Metric:
        labels = tuple(self.labels())
        if self.judged_by == "token_accuracy" or (self.judged_by is None and not marks_spans(labels)):
            return Metric("token_accuracy", "higher", pixel_accuracy_scores)
        if not marks_spans(labels):
            raise DataReadError(
                f"metric span_f1 needs tags that begin with B- and I-, or are O; column {self.target!r} has "
                f"{', '.join(labels[:8])}: judge by token_accuracy"
            )
        return Metric("span_f1", "higher", partial(span_f1_scores, labels=labels))

    def labels(self) -> list[str]:
        return self._known.labels

    def _labels(self) -> list[str]:
        labels = sorted({tag for row in self._read.labels["train"] for tag in list_of(row)})
        if len(labels) < 2:
            raise DataReadError(
                f"column {self.target!r} of train has only the tag {labels[0]!r}; at least two are needed"
            )
        return labels

    def _by_token(self, split: str, unknown: Counter[str]) -> NDArray[np.int64]:
        """[rows, tokens]: the tag's number where a word begins; tags that train has not are counted."""
        codes = {label: code for code, label in enumerate(self.labels())}
        words = word_numbers(self._tokenizer, [text for (text,) in self._read.texts[split]], tokens=self.tokens)
        found = np.full(words.shape, _NO_WORD, np.int64)
        for row, tags in enumerate(self._read.labels[split]):
            numbers = np.array([codes.get(tag, _NO_WORD) for tag in list_of(tags)], np.int64)
            unknown.update(tag for tag in list_of(tags) if tag not in codes)
            begins = words[row] >= 0
            found[row, begins] = numbers[words[row, begins]]
        return found

    @cached_property
    def _read(self) -> LabelledTexts:
        (text,), names = self.columns, table_names(self.source)
        read = read_split_tables(self.source, texts=(text, self.target))
        for split, table in read.items():
            for column in (text, self.target):
                table = with_lists(table, column, separator=None, where=names[split])
            read[split] = joined_words(table, text, self.target, where=names[split])
        return divide_texts(
            {**read}, self.columns, self.target, seed=self.seed, unlabelled=self.unlabelled, names=names
        )
