"""Texts in, vectors out: an encoder of sentences made smaller, by how near its vectors stay to what they were."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tasks.readers.kept_columns import Unlabelled
from tasks.readers.matched_texts import MatchedTexts, divide_matches
from tasks.readers.sources import local
from tasks.readers.split_tables import Source, read_split_tables, table_names
from tasks.running.errors import DataReadError
from tasks.running.splits import Columns
from tasks.workloads.encoded_texts import (
    VOCABULARY,
    EncodedTexts,
    Layers,
    Network,
    Tokens,
    in_one_split,
    new_bag,
    require_network,
)
from tasks.workloads.pooling_files import read_pooling
from tasks.workloads.text_encoder import Pooling, UnitVectors
from tasks.workloads.text_tokenizer import encode
from tasks.workloads.vector_scores import RETRIEVAL, asks, kept_cosine, with_matches
from tasks.workloads.workload import COSINE, Metric

VectorMetric = Literal["cosine", "recall@1", "recall@10", "mrr"]
_ROWS = 64
"""Texts that the teacher reads at a time, of about one length."""


class SentenceVectors(EncodedTexts):
    """One input ``tokens``, INT64 [N, length]; the answer is a vector of length 1 for each text, FP32 [N, features].

    The teacher is the encoder of the folder, and brought as it is: the spec says ``teacher: {}``. Targets are its
    vectors; no labels are needed. The endpoint takes ``text`` BYTES [N]. Needs ``pip install 'winnow-mlops[text]'``.

    Args:
        source: one file or a pattern of files, divided into splits, or one of these per split.
        encoder: folder of the encoder, beside the spec, absolute or s3://, as sentence-transformers or
            ``save_pretrained`` of transformers writes it. ``modules.json`` says how a text's vectors become one;
            without it that is their mean.
        text: name of the column of texts.
        query: of that of queries: of each row the query is answered by the text. Both are read alike.
        metric: ``cosine`` with the teacher's vector. With queries also ``recall@1``, ``recall@10`` (whether a text
            that answers the query is among the one or ten nearest of the split) and ``mrr`` (one over its place), the
            default there.
        tokens: of a text, at most; what is longer is cut. Latency is measured at this length.
        seed: of the division into splits.
        unlabelled: what to do about rows without a text or a query: ``refuse`` them, or ``drop`` them.
        delimiter: of CSV, what separates the fields; by default recognised.
    """

    trained = True

    def __init__(
        self,
        source: Source,
        encoder: str,
        text: str = "text",
        query: str | None = None,
        metric: VectorMetric | None = None,
        tokens: int = 64,
        seed: int = 0,
        unlabelled: Unlabelled = "refuse",
        delimiter: str | None = None,
    ) -> None:
        super().__init__(
            source,
            (text,),
            encoder=encoder,
            tokens=tokens,
            vocabulary=VOCABULARY,
            seed=seed,
            unlabelled=unlabelled,
            delimiter=delimiter,
        )
        self.query = query
        self.judged_by: VectorMetric = metric or ("cosine" if query is None else "mrr")
        if self.judged_by not in get_args(VectorMetric):
            raise DataReadError(f"metric {metric!r} must be one of {', '.join(get_args(VectorMetric))}")
        if query is None and self.judged_by != "cosine":
            raise DataReadError(f"metric {metric!r} needs queries; name their column by `query`, or judge by cosine")

    def splits(self) -> dict[str, Columns]:
        tokens = self._encoded()
        targets = dict[str, NDArray[Any]](vectors_of(self.model("teacher"), tokens, pad=self._shape.pad))
        if self.query is not None:
            targets = {name: with_matches(vectors, self._read.matches[name]) for name, vectors in targets.items()}
        return in_one_split(self._read, tokens, targets, most=self.tokens)

    def model(self, role: str, network: Network = "encoder", layers: Layers = "all", width: float = 1.0) -> nn.Module:
        """The encoder of the folder, or a smaller network whose vectors have as many entries.

        Args:
            network: ``bag`` is the mean of a vector for each token and for each pair of neighbours.
            layers: that the encoder has, evenly spaced or by their numbers, with their weights.
            width: scales the features; of another width a student has none of the teacher's weights.
        """
        require_network(network)
        features = self._shape.features
        if network == "bag":
            return UnitVectors(new_bag(self._shape, features, width))
        outputs = None if width == 1.0 else features
        return UnitVectors(self._new_encoder(outputs, layers, width, pooling=self._pooling))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """One minus the cosine with the teacher's vector, the mean over the rows."""
        wanted = targets[:, : outputs.shape[1]].to(outputs.dtype)
        return 1 - nn.functional.cosine_similarity(outputs, wanted, dim=1).mean()

    def metric(self) -> Metric:
        if self.query is None:
            return COSINE
        if self.judged_by == "cosine":
            return Metric("cosine", "higher", kept_cosine)
        return Metric(self.judged_by, "higher", RETRIEVAL[self.judged_by], counts=asks)

    def prune_hints(self) -> dict[str, Any]:
        """The output layer is found where it is: the vectors' entries stay."""
        return {}

    @cached_property
    def _read(self) -> MatchedTexts:
        columns = self.columns if self.query is None else (*self.columns, self.query)
        return divide_matches(
            read_split_tables(self.source, delimiter=self.delimiter, texts=columns),
            self.columns[0],
            self.query,
            keys=self._as_read,
            seed=self.seed,
            unlabelled=self.unlabelled,
            names=table_names(self.source),
        )

    def _as_read(self, texts: list[str]) -> list[bytes]:
        """The ids of each text, which is all that the encoder sees of it."""
        rows = encode(self._tokenizer, [(text,) for text in texts], tokens=self.tokens, pad=self._shape.pad)
        return [row.tobytes() for row in rows]

    @cached_property
    def _pooling(self) -> Pooling:
        assert self.encoder is not None
        with local(self.encoder) as folder:
            return read_pooling(folder)


def vectors_of(model: nn.Module, tokens: dict[str, Tokens], *, pad: int) -> dict[str, NDArray[np.float32]]:
    """The model's answers [rows, features] to ids [rows, length], by split; equal rows have equal ones.

    Texts of about one length are read together, without what only fills them up.
    """
    model.eval()
    whole = np.concatenate(list(tokens.values()))
    rows, back = np.unique(whole, axis=0, return_inverse=True)
    lengths = np.maximum((rows != pad).sum(axis=1), 1)
    order = np.argsort(lengths, kind="stable")
    found: NDArray[np.float32] | None = None
    with torch.no_grad():
        for at in range(0, len(rows), _ROWS):
            chosen = order[at : at + _ROWS]
            answers = model(torch.from_numpy(rows[chosen, : lengths[chosen].max()])).numpy()
            found = np.zeros((len(rows), answers.shape[1]), np.float32) if found is None else found
            found[chosen] = answers
    assert found is not None  # every split has rows
    ends = np.cumsum([len(part) for part in tokens.values()])[:-1]
    return dict(zip(tokens, np.split(found[back.reshape(-1)], ends), strict=True))
