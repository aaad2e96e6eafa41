"""Folders of small decoders as save_pretrained of transformers writes them, and what the formulas make of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

Array = NDArray[Any]
VOCABULARY, FEATURES, LAYERS, HEADS, KV_HEADS, HIDDEN, CONTEXT = 300, 64, 3, 4, 2, 96, 64
SIZE = FEATURES // HEADS
_LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": FEATURES,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "intermediate_size": HIDDEN,
    "max_position_embeddings": CONTEXT,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 5000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_LLAMA, "tie_word_embeddings": False},
    "mistral": {**_LLAMA, "tie_word_embeddings": False, "sliding_window": 32},
    "qwen2": {**_LLAMA, "tie_word_embeddings": True},
    "qwen3": {**_LLAMA, "tie_word_embeddings": True},
    "phi3": {**_LLAMA, "tie_word_embeddings": False},
    "gemma": {**_LLAMA, "hidden_act": "gelu_pytorch_tanh"},
    "gpt2": {
        "vocab_size": VOCABULARY,
        "n_embd": FEATURES,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "n_positions": CONTEXT,
        "activation_function": "gelu_new",
        "eos_token_id": [2, 3],
    },
}


def tensors(kind: str) -> dict[str, Array]:
    """The weights by the names that transformers gives them."""
    draw = np.random.default_rng(7)

    def made(*shape: int) -> Array:
        return (draw.standard_normal(shape) * 0.3 / math.sqrt(shape[-1] / 16)).astype(np.float32)

    if kind == "gpt2":
        found = {"wte.weight": made(VOCABULARY, FEATURES), "wpe.weight": made(CONTEXT, FEATURES)}
        found |= {"ln_f.weight": 1 + made(FEATURES), "ln_f.bias": made(FEATURES)}
        for n in range(LAYERS):
            wide = {"attn.c_attn": (FEATURES, 3 * FEATURES), "attn.c_proj": (FEATURES, FEATURES)}
            wide |= {"mlp.c_fc": (FEATURES, 4 * FEATURES), "mlp.c_proj": (4 * FEATURES, FEATURES)}
            for name, shape in wide.items():
                found |= {f"h.{n}.{name}.weight": made(*shape), f"h.{n}.{name}.bias": made(shape[1])}
            for name in ("ln_1", "ln_2"):
                found |= {f"h.{n}.{name}.weight": 1 + made(FEATURES), f"h.{n}.{name}.bias": made(FEATURES)}
        return {f"transformer.{name}": value for name, value in found.items()}
    found = {"model.embed_tokens.weight": made(VOCABULARY, FEATURES), "model.norm.weight": 1 + made(FEATURES)}
    if not CONFIGS[kind].get("tie_word_embeddings", kind == "gemma"):
        found["lm_head.weight"] = made(VOCABULARY, FEATURES)
    for n in range(LAYERS):
        layer = {
            "self_attn.q_proj": made(HEADS * SIZE, FEATURES),
            "self_attn.k_proj": made(KV_HEADS * SIZE, FEATURES),
            "self_attn.v_proj": made(KV_HEADS * SIZE, FEATURES),
            "self_attn.o_proj": made(FEATURES, HEADS * SIZE),
            "mlp.gate_proj": made(HIDDEN, FEATURES),
            "mlp.up_proj": made(HIDDEN, FEATURES),
            "mlp.down_proj": made(FEATURES, HIDDEN),
            "input_layernorm": 1 + made(FEATURES),
            "post_attention_layernorm": 1 + made(FEATURES),
        }
        if kind == "phi3":
            layer["self_attn.qkv_proj"] = np.concatenate([layer.pop(f"self_attn.{p}_proj") for p in "qkv"])
            layer["mlp.gate_up_proj"] = np.concatenate([layer.pop(f"mlp.{p}_proj") for p in ("gate", "up")])
        if kind == "qwen3":
            layer |= {"self_attn.q_norm": 1 + made(SIZE), "self_attn.k_norm": 1 + made(SIZE)}
        found |= {f"model.layers.{n}.{name}.weight": value for name, value in layer.items()}
        if kind == "qwen2":
            for part, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
                found[f"model.layers.{n}.self_attn.{part}_proj.bias"] = made(heads * SIZE)
    return found


def decoder_folder(folder: Path, kind: str, **change: Any) -> Path:
    """The folder, made; ``change``: of its config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors(kind), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": kind, **CONFIGS[kind], **change}))
    return folder


def next_logits(kind: str, tokens: list[int]) -> Array:
    """Logits [length, vocabulary] by the papers' formulas, place by place and head by head, in float64."""
    w = {name: value.astype(np.float64) for name, value in tensors(kind).items()}
    if kind == "gpt2":
        return _gpt2(w, tokens)
    one = 1.0 if kind == "gemma" else 0.0
    embedded = w["model.embed_tokens.weight"]
    x = embedded[tokens] * (math.sqrt(FEATURES) if kind == "gemma" else 1.0)
    for n in range(LAYERS):
        part = {name.removeprefix(f"model.layers.{n}."): value for name, value in w.items() if f"layers.{n}." in name}
        h = _rms(x, part["input_layernorm.weight"] + one)
        if kind == "phi3":
            sizes = np.cumsum([HEADS * SIZE, KV_HEADS * SIZE])
            query, key, value = (h @ m.T for m in np.split(part["self_attn.qkv_proj.weight"], sizes))
        else:
            query, key, value = (
                h @ part[f"self_attn.{p}_proj.weight"].T + part.get(f"self_attn.{p}_proj.bias", 0.0) for p in "qkv"
            )
        seen = np.zeros((len(tokens), HEADS * SIZE))
        for head in range(HEADS):
            mine, shared = slice(head * SIZE, (head + 1) * SIZE), head * KV_HEADS // HEADS
            theirs = slice(shared * SIZE, (shared + 1) * SIZE)
            q, k = query[:, mine], key[:, theirs]
            if kind == "qwen3":
                q, k = _rms(q, part["self_attn.q_norm.weight"]), _rms(k, part["self_attn.k_norm.weight"])
            seen[:, mine] = _attend(_turn(q), _turn(k), value[:, theirs])
        x = x + seen @ part["self_attn.o_proj.weight"].T
        h = _rms(x, part["post_attention_layernorm.weight"] + one)
        if kind == "phi3":
            gate, up = (h @ m.T for m in np.split(part["mlp.gate_up_proj.weight"], 2))
        else:
            gate, up = h @ part["mlp.gate_proj.weight"].T, h @ part["mlp.up_proj.weight"].T
        active = _gelu(gate) if kind == "gemma" else gate / (1 + np.exp(-gate))
        x = x + (active * up) @ part["mlp.down_proj.weight"].T
    found: Array = _rms(x, w["model.norm.weight"] + one) @ w.get("lm_head.weight", embedded).T
    return found


def _gpt2(w: dict[str, Array], tokens: list[int]) -> Array:
    w = {name.removeprefix("transformer."): value for name, value in w.items()}
    x = w["wte.weight"][tokens] + w["wpe.weight"][: len(tokens)]

    def dense(h: Array, name: str) -> Array:
        found: Array = h @ w[f"{name}.weight"] + w[f"{name}.bias"]
        return found

    def norm(h: Array, name: str) -> Array:
        centred = h - h.mean(-1, keepdims=True)
        found: Array = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"]
        return found + w[f"{name}.bias"]

    for n in range(LAYERS):
        query, key, value = np.split(dense(norm(x, f"h.{n}.ln_1"), f"h.{n}.attn.c_attn"), 3, axis=-1)
        heads = [slice(head * SIZE, (head + 1) * SIZE) for head in range(HEADS)]
        seen = np.concatenate([_attend(query[:, s], key[:, s], value[:, s]) for s in heads], axis=-1)
        x = x + dense(seen, f"h.{n}.attn.c_proj")
        x = x + dense(_gelu(dense(norm(x, f"h.{n}.ln_2"), f"h.{n}.mlp.c_fc")), f"h.{n}.mlp.c_proj")
    found: Array = norm(x, "ln_f") @ w["wte.weight"].T
    return found


def _rms(x: Array, weight: Array) -> Array:
    found: Array = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight
    return found


def _turn(x: Array) -> Array:
    """Rows are places; feature i and the one half a head on turn by place times 5000 ** (-2 i / size)."""
    found = np.empty_like(x)
    for place in range(len(x)):
        for i in range(SIZE // 2):
            angle = place * 5000.0 ** (-2 * i / SIZE)
            low, high = x[place, i], x[place, i + SIZE // 2]
            found[place, i] = low * math.cos(angle) - high * math.sin(angle)
            found[place, i + SIZE // 2] = high * math.cos(angle) + low * math.sin(angle)
    return found


def _attend(query: Array, key: Array, value: Array) -> Array:
    found = np.zeros_like(value)
    for place in range(len(query)):
        scores = key[: place + 1] @ query[place] / math.sqrt(SIZE)
        weights = np.exp(scores - scores.max())
        found[place] = weights / weights.sum() @ value[: place + 1]
    return found


def _gelu(x: Array) -> Array:
    found: Array = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return found
