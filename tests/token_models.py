"""Small decoders with random weights as variants: what they say means nothing, and is always the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from decoder_folders import VOCABULARY, decoder_folder

from model_registry.manifest import describe_folder
from model_registry.text_input import CHAT_TEMPLATE, DECODER, TOKENIZER
from model_registry.variant import Variant
from tasks.export.decoder_onnx import decoder_form, write_decoder
from tasks.quantize.decoder_cache import channel_scales, shrink_cache
from tasks.quantize.decoder_weights import decoder_products, quantize_decoder
from tasks.quantize.int8_dynamic import quantize_dynamically
from tasks.workloads.causal_decoder import CausalDecoder
from tasks.workloads.decoder_folder import read_decoder_folder
from tasks.workloads.text_tokenizer import new_causal_tokenizer

CHAT = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}<assistant>"
TEXT = "The quick brown fox jumps over the lazy dog, and the dog does not mind at all. "


def token_model(
    folder: Path,
    *,
    context: int = 64,
    template: str | None = CHAT,
    kv_cache: str = "float32",
    rows: bool = False,
    **form: Any,
) -> Variant:
    """A decoder with int8 weights, its tokenizer and its template; ``rows``: what products are asked is int8 too."""
    found = read_decoder_folder(decoder_folder(folder / "hf", "qwen2", max_position_embeddings=context))
    model = found.into(CausalDecoder(found.shape)).eval()
    plain = onnx.load_from_string(write_decoder(model))
    small = quantize_decoder(plain, {name: 8 for name in decoder_products(plain) if name == "words" or not rows})
    if rows:
        small = quantize_dynamically(small, per_channel=True, reduce_range=True)
    said = decoder_form(model).model_copy(update={"end": (0,), "begin": 1, **form})
    if kv_cache == "int8":
        tokens = np.random.default_rng(0).integers(0, VOCABULARY, (8, 32))
        small, said = shrink_cache(small, said, channel_scales(plain, said, tokens))
    home = folder / "variant"
    files = {
        "model.onnx": small.SerializeToString(deterministic=True),
        DECODER: said.to_json(),
        TOKENIZER: new_causal_tokenizer([TEXT * 3], size=VOCABULARY).to_str().encode(),
        **({CHAT_TEMPLATE: template.encode()} if template is not None else {}),
    }
    for name, content in files.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(content)
    return Variant(
        name="small",
        stage="quantize",
        format="onnx",
        files=tuple(describe_folder(home)),
        inputs=said.inputs,
        outputs=said.outputs,
    )
