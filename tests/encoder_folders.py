"""Folders of tiny encoders as transformers writes them: config.json, random weights in safetensors, a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

Array = NDArray[np.float32]
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "food", "##s", "very", "not", ".", "the", "was")
FEATURES, HEADS, HIDDEN, LAYERS, PLACES = 8, 2, 12, 2, 40
_BERT = {
    "model_type": "bert",
    "vocab_size": len(WORDS),
    "hidden_size": FEATURES,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": HIDDEN,
    "max_position_embeddings": PLACES,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "sep_token_id": 3,
}
_DISTILBERT = {
    "model_type": "distilbert",
    "vocab_size": len(WORDS),
    "dim": FEATURES,
    "n_layers": LAYERS,
    "n_heads": HEADS,
    "hidden_dim": HIDDEN,
    "max_position_embeddings": PLACES,
    "activation": "gelu",
    "pad_token_id": 0,
    "sep_token_id": 3,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": _BERT,
    "roberta": {**_BERT, "model_type": "roberta", "layer_norm_eps": 1e-5},
    "distilbert": _DISTILBERT,
}


def layer_parts(kind: str, number: int) -> list[str]:
    """Names of a layer's parts: queries, keys, values, what follows them, a norm, two dense layers, a norm."""
    if kind == "distilbert":
        layer, projection = f"transformer.layer.{number}", "attention.{}_lin"
        parts = [projection.format(part) for part in ("q", "k", "v", "out")]
        parts += ["sa_layer_norm", "ffn.lin1", "ffn.lin2", "output_layer_norm"]
    else:
        layer = f"encoder.layer.{number}"
        parts = [f"attention.self.{part}" for part in ("query", "key", "value")]
        parts += ["attention.output.dense", "attention.output.LayerNorm"]
        parts += ["intermediate.dense", "output.dense", "output.LayerNorm"]
    return [f"{layer}.{part}" for part in parts]


def tensors(kind: str, *, kinds: int = 2) -> dict[str, Array]:
    """Weights by the names that transformers gives them."""
    draw, found = np.random.default_rng(7), dict[str, Array]()

    def add(name: str, *shape: int, around: float = 0.0) -> None:
        found[name] = (around + 0.3 * draw.standard_normal(shape)).astype(np.float32)

    def dense(name: str, outputs: int, inputs: int) -> None:
        add(f"{name}.weight", outputs, inputs)
        add(f"{name}.bias", outputs)

    def norm(name: str) -> None:
        add(f"{name}.weight", FEATURES, around=1.0)
        add(f"{name}.bias", FEATURES)

    add("embeddings.word_embeddings.weight", len(WORDS), FEATURES)
    add("embeddings.position_embeddings.weight", PLACES, FEATURES)
    if kind != "distilbert":
        add("embeddings.token_type_embeddings.weight", kinds, FEATURES)
    norm("embeddings.LayerNorm")
    for number in range(LAYERS):
        *attention, norm1, up, down, norm2 = layer_parts(kind, number)
        for name in attention:
            dense(name, FEATURES, FEATURES)
        norm(norm1)
        dense(up, HIDDEN, FEATURES)
        dense(down, FEATURES, HIDDEN)
        norm(norm2)
    return found


def encoder_folder(folder: Path, kind: str = "bert", *, prefix: str = "", **config: Any) -> Path:
    """Write one; ``prefix`` begins the names where a head was saved with it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIGS[kind] | config))
    save_file({f"{prefix}{name}": value for name, value in tensors(kind).items()}, folder / "model.safetensors")
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path, *more: str) -> None:
    made = Tokenizer(models.WordPiece({word: i for i, word in enumerate((*WORDS, *more))}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [("[CLS]", 2), ("[SEP]", 3)]
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
    )
    made.save(str(folder / "tokenizer.json"))
