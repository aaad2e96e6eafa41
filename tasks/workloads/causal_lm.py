"""A model that continues text: from a folder, a GGUF file, or trained on the texts alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tasks.readers.documents import DividedDocuments, read_documents
from tasks.readers.splitting import Divided, require_splits
from tasks.running.errors import DataReadError
from tasks.running.splits import SPLITS, TARGET, Columns
from tasks.workloads.choice_questions import ChoiceRows, encode_questions, read_questions
from tasks.workloads.kept_layers import how_many, named_layers
from tasks.workloads.workload import Metric

if TYPE_CHECKING:
    from tasks.workloads.brought_decoder import BroughtDecoder
    from tasks.workloads.causal_decoder import DecoderShape
    from tasks.workloads.small_decoder import SmallDecoder

Depth = Literal["all", "two_thirds", "half", "third"]
_SHARES = {"all": 1.0, "two_thirds": 2 / 3, "half": 1 / 2, "third": 1 / 3}
_LEAST_VOCABULARY = 260
_SPREAD = 64
"""Letters that are cut into tokens for each token of a row that is trained on."""


class CausalLM:
    """One input ``tokens``, INT64 [N, length]; the answer is the log-probability of each token after the first.

    The metric is ``nats``: what a token costs on average, in nats; lower is better, e to its power is the perplexity.
    The released model continues texts: the endpoint has the routes of OpenAI's API for it. Needs
    ``pip install 'winnow-mlops[llm]'``.

    Args:
        source: a folder of text files, a text file, a table with a column of texts (CSV, Parquet, JSON lines), or a
            pattern of such files, local or s3://; or one per split (``{train: a, test: b}``; the splits that are not
            named are taken out of train).
        text: of a table, name of the column of texts.
        decoder: a pretrained one: a folder as ``save_pretrained`` of transformers writes it (types llama, mistral,
            qwen2, qwen3, phi3, gemma, gpt2; safetensors only), or a GGUF file, or a folder with one; beside the spec,
            absolute, s3:// or package:NAME. Absent: a small decoder and its tokenizer are trained on the texts alone.
        tokens: of a row. A text longer than that gives one row of validation and test each, so that rows are
            independent, and as many rows of train as it is long.
        rows: of train, at most; evenly spaced ones of all that there are.
        vocabulary: tokens, at most. A pretrained decoder keeps those that the training texts need most, with bytes and
            special tokens, so that every text can still be said; absent: all of them. Without one, a tokenizer of this
            size is trained; absent: of 4096.
        seed: of the division into splits.
        questions: a file of JSON lines with ``question``, ``choices`` and ``answer`` (the right one's text, or its
            number from 0). The gates ask them, once, and nothing is trained on them.
    """

    def __init__(
        self,
        source: str | Mapping[str, str],
        text: str = "text",
        decoder: str | None = None,
        tokens: int = 128,
        rows: int = 20_000,
        vocabulary: int | None = None,
        seed: int = 0,
        questions: str | None = None,
    ) -> None:
        if not 8 <= tokens <= 4096:
            raise DataReadError(f"tokens {tokens!r} must be from 8 to 4096")
        if vocabulary is not None and not _LEAST_VOCABULARY <= vocabulary <= 1 << 18:
            raise DataReadError(f"vocabulary {vocabulary!r} must be from {_LEAST_VOCABULARY} to {1 << 18}")
        if rows < 2:
            raise DataReadError(f"rows {rows!r} must be at least 2")
        self.source, self.text, self.decoder = source, text, decoder
        self.tokens, self.rows, self.vocabulary, self.seed = tokens, rows, vocabulary, seed
        self.questions = questions
        self._documents = DividedDocuments(lambda: self.read(), seed=seed)

    def read(self) -> dict[str, list[str]]:
        """The texts by split, or all under ``all``."""
        if isinstance(self.source, str):
            return {"all": read_documents(self.source, column=self.text)}
        require_splits(self.source)
        return {split: read_documents(source, column=self.text) for split, source in self.source.items()}

    # -- what a workload answers ----------------------------------------------------------------------------------
    def splits(self) -> dict[str, Columns]:
        texts = self._documents.texts
        # More than are needed, so that they are of many texts; a token has one letter at least, and four or so.
        some = {**texts, "train": _some(texts["train"], _SPREAD * self.rows * self.tokens)}
        rows = {
            split: _windows(
                (self._decoder.tokenizer.encode(text, add_special_tokens=False).ids for text in found),
                end=self._decoder.shape.end[:1],
                length=self.tokens,
                every=split == "train",
            )
            for split, found in some.items()
        }
        rows["train"] = _evenly(rows["train"], self.rows)
        if short := [split for split, found in rows.items() if not len(found)]:
            raise DataReadError(
                f"the texts of {', '.join(short)} are shorter than {self.tokens} tokens together; lower `tokens`, or "
                "bring more text"
            )
        seen, kept = set[bytes](), dict[str, NDArray[np.int64]]()
        for split in reversed(SPLITS):  # equal passages are in one split only, once
            new = [row for row in rows[split] if row.tobytes() not in seen and not seen.add(row.tobytes())]  # type: ignore[func-returns-value]
            kept[split] = np.array(new, np.int64)
        return Divided(
            {split: {"tokens": kept[split], TARGET: kept[split].copy()} for split in SPLITS},
            {split: np.arange(len(kept[split])) for split in SPLITS},
            self._documents.reading + self._decoder.reading,
        )

    def model(self, role: str, layers: Depth | int | Sequence[int] = "all", width: float = 1.0) -> nn.Module:
        """The decoder, as it was pretrained where one is named.

        Args:
            layers: that it has: a share of them, how many, or their numbers from 0. Which ones, where that is not said:
                of a student those that change most in its teacher (:meth:`settled_scale`), else evenly spaced ones.
                A student finds the weights of its teacher's.
            width: scales the features; a pretrained decoder of another width has none of its weights.
        """
        from tasks.workloads.causal_decoder import CausalDecoder

        shape = self._decoder.shape if width == 1.0 else _narrower(self._decoder.shape, width)
        if isinstance(layers, str | int):
            kept = how_many(layers, shape.layers, _SHARES, least=2)
            numbers = sorted({round(n * (shape.layers - 1) / max(1, kept - 1)) for n in range(kept)})
        else:
            numbers = named_layers(layers, shape.layers)
        pretrained = self._decoder.pretrained if width == 1.0 else None
        if pretrained is None:
            return CausalDecoder(shape, numbers)
        with torch.device("meta"):  # weights that are replaced need not be drawn
            model = CausalDecoder(shape, numbers)
        return pretrained.into(model)

    def settled_scale(
        self, scale: Mapping[str, Any], teacher: nn.Module, inputs: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        """The scale of a student with the numbers of its layers: those that change most what passes through them."""
        from tasks.workloads.block_influence import block_influence
        from tasks.workloads.causal_decoder import CausalDecoder

        layers = scale.get("layers", "all")
        if not isinstance(layers, str | int) or not isinstance(teacher, CausalDecoder):
            return dict(scale)
        kept = how_many(layers, self._decoder.shape.layers, _SHARES, least=2)
        if kept >= len(teacher.layers):
            return dict(scale)
        influence = block_influence(dict(teacher.layers.items()), lambda: teacher.states(inputs["tokens"]))
        most = sorted(influence, key=lambda name: -influence[name])[:kept]
        return {**scale, "layers": sorted(map(int, most))}

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return -outputs.mean()

    def metric(self) -> Metric:
        return Metric("nats", "lower", _nats)

    def known(self) -> dict[str, Any] | None:
        """Which tokens of a pretrained decoder are kept, if not all."""
        return self._decoder.known()

    def recall(self, known: Mapping[str, Any]) -> None:
        """What :meth:`known` said when the data were checked."""
        self._decoder.recall(known)

    def dynamic_dims(self) -> dict[str, dict[int, str]]:
        """The number of tokens may vary from request to request."""
        return {"tokens": {1: "length"}}

    def prune_hints(self) -> dict[str, Any]:
        return {"round_to": 32}  # small weights share a scale by blocks

    def causal_tokenizer(self) -> str:
        """``tokenizer.json``, which travels with the model."""
        text: str = self._decoder.tokenizer.to_str()
        return text

    def chat_template(self) -> str | None:
        """How a conversation becomes a prompt, if the decoder says so."""
        return self._decoder.chat_template()

    def choice_questions(self) -> ChoiceRows | None:
        """The questions as rows of tokens; None where there are none.

        Raises:
            DataReadError: a line is no question, or too long for the context.
        """
        if self.questions is None:
            return None
        shape = self._decoder.shape
        begin = shape.begin if shape.begin is not None else next(iter(shape.end), None)
        return encode_questions(
            read_questions(self.questions),
            self._decoder.tokenizer,
            begin=begin,
            context=shape.context,
            source=self.questions,
        )

    # -- what is read ---------------------------------------------------------------------------------------------
    @cached_property
    def _decoder(self) -> BroughtDecoder | SmallDecoder:
        """Where shape, tokenizer and first weights come from."""
        from tasks.workloads.brought_decoder import BroughtDecoder
        from tasks.workloads.small_decoder import SmallDecoder

        if self.decoder is None:
            return SmallDecoder(lambda: self._documents.texts["train"], self.vocabulary, tokens=self.tokens)
        return BroughtDecoder(self.decoder, self.vocabulary, lambda: self._documents.texts, tokens=self.tokens)


def _some(texts: Sequence[str], letters: int) -> Sequence[str]:
    """Evenly spaced ones of these texts, with so many letters or a few more: what is left out need not be encoded."""
    total = sum(map(len, texts))
    return texts if total <= letters else texts[:: max(1, total // letters)]


def _windows(texts: Iterable[Sequence[int]], *, end: Sequence[int], length: int, every: bool) -> NDArray[np.int64]:
    """Rows of tokens [N, length] of encoded texts; short texts are joined, with ``end`` between them.

    Args:
        every: all windows of the texts one after the other; otherwise one of each text, from its first third.
    """
    found, joined = list[Sequence[int]](), list[int]()
    for text in texts:
        if len(text) < length:
            joined += [*text, *end]
            while len(joined) >= length:
                found.append(joined[:length])
                joined = joined[length:]
        elif every:
            found += [text[at : at + length] for at in range(0, len(text) - length + 1, length)]
        else:
            at = min(len(text) // 3, len(text) - length)
            found.append(text[at : at + length])
    return np.array(found, np.int64).reshape(-1, length)


def _evenly(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most that many of the rows, evenly spaced: a few texts alone would not stand for all."""
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]


def _narrower(shape: DecoderShape, width: float) -> DecoderShape:
    groups = shape.heads // shape.kv_heads
    kv_heads = max(1, round(shape.kv_heads * width))
    features = max(8, 8 * round(shape.features * width / 8))
    return replace(
        shape,
        features=features,
        kv_heads=kv_heads,
        heads=kv_heads * groups,
        hidden=max(8, 8 * math.ceil(shape.hidden * width / 8)),
    )


def _nats(outputs: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.float64]:
    nats: NDArray[np.float64] = -outputs.astype(np.float64).mean(axis=1)
    return nats
