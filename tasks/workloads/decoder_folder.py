"""Decoders of Hugging Face folders: types of Llama's kind (llama, mistral, qwen2, qwen3, phi3, gemma) and gpt2.

Pickled weights and code that comes with a model are refused: both run whatever somebody wrote into them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.running.errors import DataReadError
from tasks.workloads.causal_decoder import CausalDecoder, DecoderActivation, DecoderShape
from tasks.workloads.model_folder import folder_config, folder_tensor_names, folder_tensors

KINDS = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "gpt2")
_LONGEST = 8192
"""Tokens of context that are kept of what a model can do: tables of places grow with them."""
_ACTIVATIONS: dict[str, DecoderActivation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "relu": "relu",
}
_BY_TOKEN = ("words.weight", "head.weight")
_LLAMA = {
    "norm1": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "attention.query_norm": "self_attn.q_norm",
    "attention.key_norm": "self_attn.k_norm",
    "norm2": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_GPT2 = {
    "norm1": "ln_1",
    "attention.out": "attn.c_proj",
    "norm2": "ln_2",
    "up": "mlp.c_fc",
    "down": "mlp.c_proj",
}


@dataclass(frozen=True)
class PretrainedDecoder:
    """A decoder as its files have it: shape, and weights by the names of :class:`CausalDecoder`."""

    shape: DecoderShape
    weights: Mapping[str, Tensor]

    def with_tokens(self, kept: NDArray[np.int64]) -> PretrainedDecoder:
        """The same decoder of these tokens alone, in their order."""
        rows = torch.from_numpy(kept)
        tables = {name: tensor[rows] for name, tensor in self.weights.items() if name in _BY_TOKEN}
        return PretrainedDecoder(self.shape.with_tokens(kept), {**self.weights, **tables})

    def into(self, model: CausalDecoder) -> CausalDecoder:
        """The model with copies of these weights, as far as it has the layers; it may be on the device ``meta``."""
        model.load_state_dict({name: self.weights[name].clone() for name in model.state_dict()}, assign=True)
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        return model


def read_decoder_shape(folder: Path) -> DecoderShape:
    """The shape alone; errors as for :func:`read_decoder_folder`."""
    config = folder_config(folder, KINDS)
    kind = config["model_type"]
    try:
        shape = _gpt2_shape(config) if kind == "gpt2" else _llama_shape(config, str(folder))
    except KeyError as error:
        raise DataReadError(f"{folder}/config.json of type {kind} does not say {error.args[0]!r}") from error
    tied = bool(config.get("tie_word_embeddings", kind in ("gemma", "gpt2")))
    tied = tied or "lm_head.weight" not in folder_tensor_names(folder)  # older files leave the copy out
    return replace(shape, end=_ends(folder, config), begin=_number(config.get("bos_token_id")), tied=tied)


def read_decoder_folder(folder: Path) -> PretrainedDecoder:
    """Shape and weights of the decoder in a folder that ``save_pretrained`` of transformers wrote.

    Raises:
        DataReadError: there is none, of another type, with code of its own, with pickled or missing weights, or with a
            part that is not known here; says which.
    """
    shape, kind = read_decoder_shape(folder), folder_config(folder, KINDS)["model_type"]
    prefix = "transformer." if kind == "gpt2" else "model."
    raw = {name.removeprefix(prefix): tensor for name, tensor in folder_tensors(folder).items()}
    weights = dict(_gpt2_weights(raw, shape) if kind == "gpt2" else _llama_weights(raw, shape, kind))
    return PretrainedDecoder(shape, fitting(weights, shape, str(folder)))


def fitting(weights: Mapping[str, Tensor | None], shape: DecoderShape, where: str) -> dict[str, Tensor]:
    """The weights as floats, checked against what the shape asks for.

    Raises:
        DataReadError: one is missing or has another size.
    """
    found = dict[str, Tensor]()
    with torch.device("meta"):
        wanted = CausalDecoder(shape).state_dict()
    for name, tensor in wanted.items():
        given = weights.get(name)
        if given is None:
            raise DataReadError(f"the weights in {where} lack {name!r}, which its config tells of; save both together")
        if given.shape != tensor.shape:
            raise DataReadError(f"{name} in {where} is {list(given.shape)}; its config asks for {list(tensor.shape)}")
        found[name] = given.float()
    return found


def frequencies(size: int, base: float) -> tuple[float, ...]:
    """Of a head of that size: ``base ** (-2 i / size)``."""
    return tuple(base ** (-2 * i / size) for i in range(size // 2))


def _llama_shape(config: Mapping[str, Any], where: str) -> DecoderShape:
    kind = config["model_type"]
    heads, features = int(config["num_attention_heads"]), int(config["hidden_size"])
    size = int(config.get("head_dim") or features // heads)
    activation = str(config.get("hidden_activation") or config["hidden_act"])
    if activation not in _ACTIVATIONS:
        raise DataReadError(f"{where} has the activation {activation!r}; known are {', '.join(_ACTIVATIONS)}")
    if (share := float(config.get("partial_rotary_factor") or 1.0)) != 1.0:
        raise DataReadError(f"{where} turns {share:.0%} of each head's features by its place; only all are known")
    if config.get("mlp_bias"):
        raise DataReadError(f"{where} has biases in its dense layers (mlp_bias), which are not known for this type")
    context = min(_LONGEST, int(config["max_position_embeddings"]))
    if config.get("sliding_window") and config.get("use_sliding_window", kind in ("mistral", "phi3")):
        context = min(context, int(config["sliding_window"]))  # within the window it is the same
    return DecoderShape(
        vocabulary=int(config["vocab_size"]),
        features=features,
        layers=int(config["num_hidden_layers"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_size=size,
        hidden=int(config["intermediate_size"]),
        context=context,
        rotation=_rotation(config, size, where),
        epsilon=float(config.get("rms_norm_eps", 1e-6)),
        activation=_ACTIVATIONS[activation],
        biases=_qkv_biases(config, where),
        head_norms=kind == "qwen3",
        scaled=kind == "gemma",
    )


def _qkv_biases(config: Mapping[str, Any], where: str) -> Any:
    if config["model_type"] == "qwen2":
        return "qkv"
    if config.get("attention_bias"):
        raise DataReadError(f"{where} has biases in its attention (attention_bias), which are not known for this type")
    return "none"


def _rotation(config: Mapping[str, Any], size: int, where: str) -> tuple[float, ...]:
    """Angles by pair of features, with Llama 3's longer reach or a linear one (transformers, modeling_rope_utils)."""
    told = config.get("rope_parameters") or config.get("rope_scaling") or {}
    base = float(told.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    plain = frequencies(size, base)
    kind = told.get("rope_type") or told.get("type") or "default"
    if kind == "default":
        return plain
    if kind == "linear":
        return tuple(turn / float(told["factor"]) for turn in plain)
    if kind == "llama3":
        return tuple(_llama3(turn, told) for turn in plain)
    raise DataReadError(
        f"{where} scales its places by {kind!r}; known are default, linear and llama3: bring a model whose context "
        "needs no such scaling"
    )


def _llama3(turn: float, told: Mapping[str, Any]) -> float:
    factor, low, high = float(told["factor"]), float(told["low_freq_factor"]), float(told["high_freq_factor"])
    length = 2 * math.pi / turn
    before = float(told["original_max_position_embeddings"])
    if length < before / high:
        return turn
    if length > before / low:
        return turn / factor
    smooth = (before / length - low) / (high - low)
    return (1 - smooth) * turn / factor + smooth * turn


def _llama_weights(raw: Mapping[str, Tensor], shape: DecoderShape, kind: str) -> Iterator[tuple[str, Tensor | None]]:
    def norm(name: str) -> Tensor | None:
        weight = raw.get(name)
        return weight.float() + 1.0 if weight is not None and kind == "gemma" else weight  # stored as its distance to 1

    yield "words.weight", raw.get("embed_tokens.weight")
    yield "norm.weight", norm("norm.weight")
    if not shape.tied:
        yield "head.weight", raw.get("lm_head.weight")
    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    for number in range(shape.layers):
        theirs, ours = f"layers.{number}", f"layers.{number}"
        for name, called in _LLAMA.items():
            weight = f"{theirs}.{called}.weight"
            yield f"{ours}.{name}.weight", norm(weight) if name in ("norm1", "norm2") else raw.get(weight)
            yield f"{ours}.{name}.bias", raw.get(f"{theirs}.{called}.bias")
        if (packed := raw.get(f"{theirs}.self_attn.qkv_proj.weight")) is not None:
            parts = torch.split(packed, [queries, keys, keys])
            for name, part in zip(("query", "key", "value"), parts, strict=True):
                yield f"{ours}.attention.{name}.weight", part
        if (packed := raw.get(f"{theirs}.mlp.gate_up_proj.weight")) is not None:
            for name, part in zip(("gate", "up"), packed.chunk(2), strict=True):
                yield f"{ours}.{name}.weight", part


def _gpt2_shape(config: Mapping[str, Any]) -> DecoderShape:
    features, heads = int(config["n_embd"]), int(config["n_head"])
    return DecoderShape(
        vocabulary=int(config["vocab_size"]),
        features=features,
        layers=int(config["n_layer"]),
        heads=heads,
        kv_heads=heads,
        head_size=features // heads,
        hidden=int(config.get("n_inner") or 4 * features),
        context=int(config["n_positions"]),
        rotation=None,
        norm="layer",
        epsilon=float(config.get("layer_norm_epsilon", 1e-5)),
        activation=_ACTIVATIONS[str(config.get("activation_function", "gelu_new"))],
        gated=False,
        biases="all",
    )


def _gpt2_weights(raw: Mapping[str, Tensor], shape: DecoderShape) -> Iterator[tuple[str, Tensor | None]]:
    yield "words.weight", raw.get("wte.weight")
    yield "places.weight", raw.get("wpe.weight")
    for part in ("weight", "bias"):
        yield f"norm.{part}", raw.get(f"ln_f.{part}")
    if not shape.tied:
        yield "head.weight", raw.get("lm_head.weight")
    for number in range(shape.layers):
        for ours, theirs in _GPT2.items():
            weight = raw.get(f"h.{number}.{theirs}.weight")
            yield f"layers.{number}.{ours}.weight", weight.T if weight is not None and weight.ndim == 2 else weight
            yield f"layers.{number}.{ours}.bias", raw.get(f"h.{number}.{theirs}.bias")
        for part in ("weight", "bias"):
            packed = raw.get(f"h.{number}.attn.c_attn.{part}")
            rows = None if packed is None else packed.T.contiguous() if packed.ndim == 2 else packed
            for at, name in enumerate(("query", "key", "value")):
                yield f"layers.{number}.attention.{name}.{part}", None if rows is None else rows.chunk(3)[at]


def _ends(folder: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    """What ends an answer, by generation_config.json, else by config.json."""
    told = config.get("eos_token_id")
    file = folder / "generation_config.json"
    if file.is_file():
        try:
            told = json.loads(file.read_text()).get("eos_token_id", told)
        except ValueError as error:
            raise DataReadError(f"{file} is not JSON: {error}") from error
    ends = told if isinstance(told, list) else [told]
    return tuple(int(number) for number in ends if number is not None)


def _number(told: Any) -> int | None:
    return int(told) if isinstance(told, int) else None
