"""The small forms of a decoder: which methods suit it, and what became of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto

from model_registry.decoder_form import DecoderForm, KvCache, score_tokens
from model_registry.text_input import DECODER
from tasks.onnx_models.onnx_cost import onnx_cost
from tasks.quantize.agreement import agree
from tasks.quantize.answer_rounding import input_products, round_by_answers
from tasks.quantize.decoder_cache import channel_scales, shrink_cache
from tasks.quantize.decoder_weights import Rounded, block_of, decoder_products, quantize_decoder, table_of
from tasks.quantize.quantized_forms import QuantizedForm

_BITS = {"weights8": {"all": 8, "table": 8}, "weights4": {"all": 4, "table": 8}}
"""By method: of the products, and of the table of tokens, which the head shares: it is read once a token, but every
token's logits are rounded by it."""
_WHY_NOT = "a decoder reads every weight for each token: weights8 and weights4 make it small and fast"


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
    progress: Callable[[float, str], None],
) -> tuple[list[QuantizedForm], dict[str, str]]:
    """A form by each method that suits a decoder, and why others do not.

    Args:
        file: the fp32 file. ``tokens``: calibration rows; ``wanted``: the file's scores of the first of them.
        progress: takes a fraction of the whole and a line of text.
    """
    model = onnx.load_from_string(file)
    made, skipped = list[QuantizedForm](), dict[str, str]()
    scales = channel_scales(model, form, tokens) if kv_cache == "int8" else None
    for number, method in enumerate(methods):
        progress(number / len(methods), method)
        bits = _BITS.get(method)
        if bits is None:
            skipped[method] = _WHY_NOT
        elif not decoder_products(model):
            skipped[method] = "the file is quantized already"
        else:
            rounded = None
            if bits["all"] == 4:
                products = input_products(model, form, tokens)
                rounded = partial(_by_answers, products)
            made.append(_form(model, form, tokens[: len(wanted)], wanted, method, bits, rounded, scales))
    return made, skipped


def _form(
    model: ModelProto,
    form: DecoderForm,
    tokens: NDArray[np.int64],
    wanted: NDArray[np.float32],
    method: str,
    bits: Mapping[str, int],
    rounded: Rounded | None,
    scales: Mapping[str, NDArray[np.float32]] | None,
) -> QuantizedForm:
    table, products = table_of(model), decoder_products(model)
    lengths = {
        i.name: (i.dims[1] if i.name == table else i.dims[0]) for i in model.graph.initializer if len(i.dims) == 2
    }
    chosen = {name: bits["table" if name == table else "all"] for name in {*products, *filter(None, [table])}}
    chosen = {name: wide for name, wide in chosen.items() if block_of(lengths[name], wide) is not None}
    quantized, small_form = quantize_decoder(model, chosen, rounded), form
    if scales is not None:
        quantized, small_form = shrink_cache(quantized, form, scales)
    data = quantized.SerializeToString(deterministic=True)
    macs = {name: _size(model, name) for name in products}
    small = sum(macs[name] for name in products if name in chosen)
    cost = onnx_cost(model)
    facts: dict[str, Any] = {
        "parameters": cost.parameters,
        "macs": cost.macs,
        "bytes": len(data),
        "quantized": len(products.keys() & chosen.keys()),
        "quantizable": len(products),
        "share": small / sum(macs.values()),
        "fp32_layers": sorted(products.keys() - chosen.keys()),
        **asdict(agree(wanted, decoder_scores(data, small_form, tokens))),
        "agreement": None,
        "kv_cache": small_form.kv_cache,
    }
    return QuantizedForm(method, data, False, facts, {DECODER: small_form.to_json()})


def _by_answers(
    products: Mapping[str, NDArray[np.float64]], name: str, matrix: NDArray[Any], block: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    return round_by_answers(matrix, products[name], block)


def _size(model: ModelProto, name: str) -> int:
    return next(int(np.prod(i.dims)) for i in model.graph.initializer if i.name == name)
