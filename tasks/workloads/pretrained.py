"""Encoders of Hugging Face folders: ``config.json`` and safetensors files of the BERT, RoBERTa and DistilBERT types.

Pickled weights and code that comes with a model are refused: both run whatever somebody wrote into them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tasks.running.errors import DataReadError
from tasks.workloads.model_folder import folder_config, folder_tensors
from tasks.workloads.text_encoder import Activation, EncoderShape, TextEncoder

_KINDS = ("bert", "roberta", "xlm-roberta", "distilbert")
_ENDS = ("[SEP]", "</s>")
_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "relu": "relu",
}
_OPTIONAL = {"bert": "bert.", "roberta": "roberta.", "xlm-roberta": "roberta.", "distilbert": "distilbert."}
"""Begins the names of the encoder's weights where a head was saved with it."""
_BERT = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.out": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm2": "output.LayerNorm",
}
_DISTILBERT = {
    "attention.query": "attention.q_lin",
    "attention.key": "attention.k_lin",
    "attention.value": "attention.v_lin",
    "attention.out": "attention.out_lin",
    "norm1": "sa_layer_norm",
    "up": "ffn.lin1",
    "down": "ffn.lin2",
    "norm2": "output_layer_norm",
}


@dataclass(frozen=True)
class Pretrained:
    """An encoder as its folder has it: shape, and weights by the names of :class:`TextEncoder`, head aside."""

    shape: EncoderShape
    weights: Mapping[str, Tensor]

    def into(self, model: TextEncoder) -> TextEncoder:
        """The model with these weights, as far as it has the layers."""
        ours = model.state_dict()
        model.load_state_dict({name: self.weights.get(name, tensor) for name, tensor in ours.items()})
        return model


def read_shape(folder: Path, *, pair: bool = False) -> EncoderShape:
    """What ``config.json`` says.

    Args:
        pair: whether the model is to read two texts.

    Raises:
        DataReadError: there is no such file, or a model of another type, or one that brings its own code.
    """
    file = folder / "config.json"
    config = folder_config(folder, _KINDS)
    kind = config["model_type"]
    if (places := config.get("position_embedding_type", "absolute")) != "absolute":
        raise DataReadError(f"{file} has places of the type {places!r}; those that can be read are 'absolute'")
    activation = config.get("activation" if kind == "distilbert" else "hidden_act", "gelu")
    if activation not in _ACTIVATIONS:
        raise DataReadError(f"{file} has the activation {activation!r}; known are {', '.join(_ACTIVATIONS)}")
    separator = _separator(folder, config) if pair else None
    try:
        return _shape(kind, config, separator=separator, activation=_ACTIVATIONS[activation])
    except KeyError as error:
        raise DataReadError(f"{file} of type {kind} does not say {error.args[0]!r}") from error


def read_pretrained(folder: Path, *, pair: bool = False) -> Pretrained:
    """Shape and weights of the encoder; arguments and errors as for :func:`read_shape`.

    Raises:
        DataReadError: its weights are missing, pickled, or not those of its config.
    """
    shape = read_shape(folder, pair=pair)
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    raw = {name.removeprefix(_OPTIONAL[kind]): tensor for name, tensor in folder_tensors(folder).items()}
    wanted = {
        "words.weight": "embeddings.word_embeddings.weight",
        "places.weight": "embeddings.position_embeddings.weight",
        "norm.weight": "embeddings.LayerNorm.weight",
        "norm.bias": "embeddings.LayerNorm.bias",
    }
    distilled = kind == "distilbert"
    for number in range(shape.layers):
        prefix = f"transformer.layer.{number}" if distilled else f"encoder.layer.{number}"
        for ours, theirs in (_DISTILBERT if distilled else _BERT).items():
            for part in ("weight", "bias"):
                wanted[f"layers.{number}.{ours}.{part}"] = f"{prefix}.{theirs}.{part}"
    missing = [name for name in wanted.values() if name not in raw]
    if missing:
        raise DataReadError(
            f"the weights in {folder} lack {len(missing)} of the tensors that config.json tells of, such as "
            f"{missing[0]!r}; save both with one save_pretrained"
        )
    weights = {ours: raw[theirs].float() for ours, theirs in wanted.items()}
    _add_kinds(weights, raw.get("embeddings.token_type_embeddings.weight"), shape)
    wrong = {
        name: list(tensor.shape)
        for name, tensor in TextEncoder(shape, 1).state_dict().items()
        if name in weights and tensor.shape != weights[name].shape
    }
    if wrong:
        name = next(iter(wrong))
        raise DataReadError(
            f"{wanted.get(name, name)} in {folder} is {list(weights[name].shape)}; config.json asks for {wrong[name]}"
        )
    return Pretrained(shape, weights)


def _separator(folder: Path, config: Mapping[str, Any]) -> int:
    """The id that ends a text, by config.json, or as the tokenizer spells it."""
    if config.get("sep_token_id") is not None:
        return int(config["sep_token_id"])
    with suppress(OSError, ValueError, KeyError, TypeError):
        added = {
            token["content"]: token["id"]
            for token in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
        }
        for name in _ENDS:
            if name in added:
                return int(added[name])
    raise DataReadError(
        f"{folder}: neither config.json (sep_token_id) nor tokenizer.json ({', '.join(_ENDS)}) says which token ends a "
        "text, which a model of pairs needs"
    )


def _shape(kind: str, config: Mapping[str, Any], *, separator: int | None, activation: Activation) -> EncoderShape:
    pad = int(config.get("pad_token_id", 0))
    if kind == "distilbert":
        return EncoderShape(
            vocabulary=config["vocab_size"],
            features=config["dim"],
            layers=config["n_layers"],
            heads=config["n_heads"],
            hidden=config["hidden_dim"],
            places=config["max_position_embeddings"],
            pad=pad,
            separator=separator,
            activation=activation,
        )
    return EncoderShape(
        vocabulary=config["vocab_size"],
        features=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        hidden=config["intermediate_size"],
        places=config["max_position_embeddings"],
        pad=pad,
        first=pad + 1 if kind != "bert" else 0,
        separator=separator,
        activation=activation,
        epsilon=float(config.get("layer_norm_eps", 1e-12)),
    )


def _add_kinds(weights: dict[str, Tensor], kinds: Tensor | None, shape: EncoderShape) -> None:
    """Vectors of the first and of the second text; where there is only one, its vector joins those of the places."""
    if kinds is None:
        kinds = torch.zeros(2, shape.features)
    kinds = kinds.float()
    if shape.separator is None:
        weights["places.weight"] = weights["places.weight"] + kinds[0]
    else:  # RoBERTa has one for both
        weights["texts.weight"] = kinds[:2] if len(kinds) > 1 else kinds.expand(2, -1).clone()
