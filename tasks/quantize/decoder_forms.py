"""The small forms of a decoder: which methods suit it, and what became of each."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from model_registry.cpu_class import cpu_class, sums_saturate
from model_registry.decoder_form import LOGITS, DecoderForm, KvCache, score_tokens
from model_registry.text_input import DECODER
from tasks.onnx_models.block_rows import unpack_rows
from tasks.onnx_models.onnx_cost import onnx_cost
from tasks.quantize.agreement import agree
from tasks.quantize.answer_rounding import (
    by_answers,
    input_products,
    inverse_root,
    moved_answers,
    round_rows_by_answers,
)
from tasks.quantize.decoder_cache import channel_scales, shrink_cache
from tasks.quantize.decoder_weights import (
    Grid,
    Rounded,
    decoder_products,
    quantize_decoder,
    round_to_nearest,
    table_of,
    usual_grid,
)
from tasks.quantize.divergence import Divergence
from tasks.quantize.int8_dynamic import quantize_dynamically
from tasks.quantize.mixed_grids import MixedGrids
from tasks.quantize.quantized_forms import QuantizedForm
from tasks.quantize.smoothed_decoder import channel_magnitudes, smoothed

_BITS = {"weights8": {"all": 8, "table": 8}, "weights4": {"all": 4, "table": 8}}
"""By method: of the products, and of the table of tokens, which the head shares: it is read once a token, but every
token's logits are rounded by it."""
_WHY_NOT = "of a decoder weights8, weights4, mixed and dynamic make small forms"
Progress = Callable[[float, str], None]
_LEARNED = 32
"""Rows from which it is learned what layers are asked, for weights of 4 bits and rows in int8."""
_KEPT_APART = 5
"""One of this number of rows is kept apart to measure damages on: of 40 rows 8, a thousand tokens."""


def decoder_scores(file: bytes | str, form: DecoderForm, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """Log-probabilities [N, length - 1] of the tokens by a file, one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return score_tokens(lambda names, feeds: session.run(list(names), dict(feeds)), form, tokens)


def decoder_forms(
    file: bytes,
    form: DecoderForm,
    tokens: NDArray[np.int64],
    wanted: NDArray[np.float32],
    methods: Sequence[str],
    kv_cache: KvCache,
    progress: Progress,
    max_bytes: int | None = None,
) -> tuple[list[QuantizedForm], dict[str, str]]:
    """A form by each method that suits a decoder, and why others do not.

    Args:
        file: the fp32 file. ``tokens``: calibration rows; ``wanted``: the file's scores of the first of them.
        progress: takes a fraction of the whole and a line of text.
        max_bytes: of the file of mixed bits.
    """
    model = onnx.load_from_string(file)
    made, skipped = list[QuantizedForm](), dict[str, str]()
    scales = channel_scales(model, form, tokens[:_LEARNED]) if kv_cache == "int8" else None
    decoder = _Decoder(model, form, tokens, wanted, scales)
    for number, method in enumerate(methods):
        progress(number / len(methods), method)
        tell = _part(progress, number, len(methods), method)
        if method not in (*_BITS, "mixed", "dynamic"):
            skipped[method] = _WHY_NOT
        elif not decoder_products(model):
            skipped[method] = "the file is quantized already"
        elif method == "dynamic":
            made.append(decoder.rows_in_int8(method, tell))
        elif method == "mixed":
            assert max_bytes is not None, "a spec without it is refused"
            mixed = MixedGrids(model, others=decoder.cache_bytes)
            if max_bytes < mixed.smallest:
                skipped[method] = (
                    f"max_bytes {max_bytes} is less than the {mixed.smallest} that this model takes with 4 bits in the "
                    f"longest blocks (with 8 it takes {mixed.largest}); ask for more, or make a smaller model first"
                )
                continue
            apart = Divergence(file, form, tokens[-max(1, len(tokens) // _KEPT_APART) :])
            mixture = mixed.mix(decoder.rounded, decoder.moved, apart, max_bytes, tell)
            made.append(decoder.small(method, mixture.grids, {"groups": mixture.groups}))
        else:
            made.append(decoder.small(method, decoder.grids(_BITS[method]), {}))
    return made, skipped


def _part(progress: Progress, number: int, count: int, method: str) -> Progress:
    """Tells of one method among several."""
    return lambda fraction, text: progress((number + fraction) / count, f"{method} ({text})")


class _Decoder:
    """An fp32 file, and what its small forms are compared with."""

    def __init__(
        self,
        model: ModelProto,
        form: DecoderForm,
        tokens: NDArray[np.int64],
        wanted: NDArray[np.float32],
        scales: Mapping[str, NDArray[np.float32]] | None,
    ) -> None:
        self._model, self._form, self._tokens, self._wanted, self._scales = model, form, tokens, wanted, scales
        self._products = decoder_products(model)
        self._known = dict[tuple[str, Grid], tuple[NDArray[np.uint8], NDArray[np.float32]]]()

    def rounded(self, name: str, matrix: NDArray[Any], grid: Grid) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """To 8 bits, or to 4 by what the layers answer to the rows; each but once, for several files."""
        if (name, grid) not in self._known:
            rounded = round_to_nearest if grid.bits == 8 else self._learned
            self._known[name, grid] = rounded(name, matrix, grid)
        return self._known[name, grid]

    def moved(self, name: str, grid: Grid) -> float:
        """By how much a weight's answers to the rows move on a grid, as a sum of squares."""
        weight = next(i for i in self._model.graph.initializer if i.name == name)
        matrix = numpy_helper.to_array(weight)
        matrix = matrix if name == table_of(self._model) else matrix.T
        packed, scales = self.rounded(name, matrix, grid)
        wrong = matrix - unpack_rows(packed, grid.bits) * np.repeat(scales, grid.block, axis=1)
        return moved_answers(wrong, self._asked.get(name))

    @cached_property
    def _asked(self) -> Mapping[str, NDArray[np.float64]]:
        return input_products(self._model, self._form, self._tokens[:_LEARNED])

    @cached_property
    def _learned(self) -> Rounded:
        return by_answers(self._asked)

    @cached_property
    def cache_bytes(self) -> int:
        """What the scales of keys and values take in a file."""
        return int(self._finished(self._model)[0].ByteSize() - self._model.ByteSize())

    def grids(self, bits: Mapping[str, int]) -> dict[str, Grid]:
        """Of each weight whose rows can be divided into blocks; ``bits`` of ``all``, and of the ``table``."""
        table = table_of(self._model)
        lengths = {
            i.name: (i.dims[1] if i.name == table else i.dims[0])
            for i in self._model.graph.initializer
            if len(i.dims) == 2
        }
        names = {*self._products, *filter(None, [table])}
        found = {name: usual_grid(lengths[name], bits["table" if name == table else "all"]) for name in names}
        return {name: grid for name, grid in found.items() if grid is not None}

    def small(self, method: str, grids: Mapping[str, Grid], more: Mapping[str, Any]) -> QuantizedForm:
        """The file on these grids, and what became of it."""
        return self._form_of(method, quantize_decoder(self._model, grids, self.rounded), grids.keys(), more)

    def rows_in_int8(self, method: str, progress: Progress) -> QuantizedForm:
        """The file whose products are of whole numbers, each row by its own range; the table and the head in blocks."""
        model, divisors = smoothed(self._model, channel_magnitudes(self._model, self._form, self._tokens[:_LEARNED]))
        head = {name for name, node in self._products.items() if node.output[0] == LOGITS}
        done = itertools.count()

        def rounded(name: str, matrix: NDArray[Any], most: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
            progress(next(done) / len(self._products), name)
            asked, divisor = self._asked[name], divisors.get(name)
            if divisor is not None:
                asked = asked / np.outer(divisor, divisor)
            numbers, scales = round_rows_by_answers(matrix.T, inverse_root(asked), most)
            return np.ascontiguousarray(numbers.T), scales

        grids = self.grids(_BITS["weights8"])
        beside = {name: grid for name, grid in grids.items() if name == table_of(model) or name in head}
        quantized = quantize_dynamically(
            quantize_decoder(model, beside, self.rounded),
            per_channel=True,
            reduce_range=sums_saturate(cpu_class()),
            rounded=rounded,
        )
        return self._form_of(method, quantized, {*(self._products.keys() - head), *beside}, {})

    def _form_of(self, method: str, made: ModelProto, grids: Collection[str], more: Mapping[str, Any]) -> QuantizedForm:
        quantized, small_form = self._finished(made)
        data = quantized.SerializeToString(deterministic=True)
        macs = {name: _size(self._model, name) for name in self._products}
        small = sum(macs[name] for name in self._products if name in grids)
        cost = onnx_cost(self._model)
        facts: dict[str, Any] = {
            "parameters": cost.parameters,
            "macs": cost.macs,
            "bytes": len(data),
            "quantized": len(self._products.keys() & {*grids}),
            "quantizable": len(self._products),
            "share": small / sum(macs.values()),
            "fp32_layers": sorted(self._products.keys() - {*grids}),
            **asdict(agree(self._wanted, decoder_scores(data, small_form, self._tokens[: len(self._wanted)]))),
            "agreement": None,
            "kv_cache": small_form.kv_cache,
            **more,
        }
        return QuantizedForm(method, data, False, facts, {DECODER: small_form.to_json()})

    def _finished(self, model: ModelProto) -> tuple[ModelProto, DecoderForm]:
        return (model, self._form) if self._scales is None else shrink_cache(model, self._form, self._scales)


def _size(model: ModelProto, name: str) -> int:
    return next(int(np.prod(i.dims)) for i in model.graph.initializer if i.name == name)
