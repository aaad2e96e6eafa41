"""Encoders from Hugging Face folders: the same numbers as the papers' formulas give, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_folders import (
    CONFIGS,
    FEATURES,
    HEADS,
    LAYERS,
    Array,
    encoder_folder,
    layer_parts,
    tensors,
    write_tokenizer,
)
from safetensors.numpy import save_file

from tasks.running.errors import DataReadError
from tasks.workloads.pretrained import read_pretrained, read_shape
from tasks.workloads.text_encoder import TextEncoder
from tasks.workloads.text_tokenizer import read_tokenizer

TOKENS = [[2, 12, 6, 13, 4, 3, 0, 0], [2, 9, 5, 3, 10, 7, 8, 3]]
PAIRS = [[2, 12, 3, 13, 4, 3, 0, 0], [2, 9, 5, 3, 10, 7, 8, 3]]


def dense(weights: dict[str, Array], x: Array, name: str) -> Array:
    found: Array = x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
    return found


def norm(x: Array, weight: Array, bias: Array, epsilon: float) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    found: Array = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * weight + bias
    return found


def gelu(x: Array) -> Array:
    erf = np.vectorize(math.erf)
    found: Array = x * 0.5 * (1 + erf(x / math.sqrt(2)))
    return found


def hidden_states(kind: str, tokens: list[int], second: int) -> Array:
    """Of one row without padding, by the papers' formulas, token by token and head by head.

    Args:
        second: place of the first token of the second text.
    """
    w, epsilon = tensors(kind), CONFIGS[kind].get("layer_norm_eps", 1e-12)
    first = 1 if kind == "roberta" else 0
    x = w["embeddings.word_embeddings.weight"][tokens]
    x = x + w["embeddings.position_embeddings.weight"][first : first + len(tokens)]
    if kind != "distilbert":
        kinds = [0] * second + [1] * (len(tokens) - second)
        x = x + w["embeddings.token_type_embeddings.weight"][kinds]
    x = norm(x, w["embeddings.LayerNorm.weight"], w["embeddings.LayerNorm.bias"], epsilon)
    for number in range(LAYERS):
        *attention, out, norm1, up, down, norm2 = layer_parts(kind, number)
        query, key, value = (dense(w, x, name) for name in attention)
        size, heads = FEATURES // HEADS, []
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            scores = query[:, part] @ key[:, part].T / math.sqrt(size)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(weights / weights.sum(-1, keepdims=True) @ value[:, part])
        x = x + dense(w, np.concatenate(heads, -1), out)
        x = norm(x, w[f"{norm1}.weight"], w[f"{norm1}.bias"], epsilon)
        x = x + dense(w, gelu(dense(w, x, up)), down)
        x = norm(x, w[f"{norm2}.weight"], w[f"{norm2}.bias"], epsilon)
    return x


@pytest.mark.parametrize("prefix", ["", "its own"])
@pytest.mark.parametrize("pair", [False, True], ids=["text", "pair"])
@pytest.mark.parametrize("kind", list(CONFIGS))
def test_the_numbers_are_those_of_the_formulas(tmp_path: Path, kind: str, pair: bool, prefix: str) -> None:
    folder = encoder_folder(tmp_path, kind, prefix=f"{kind}." if prefix else "")
    found = read_pretrained(folder, pair=pair)
    model = found.into(TextEncoder(found.shape, 3)).eval()
    rows = PAIRS if pair else TOKENS
    with torch.no_grad():
        answers = model(torch.tensor(rows))
        head, bias = (model.head.get_parameter(name).numpy() for name in ("weight", "bias"))
    for row, answer in zip(rows, answers.numpy(), strict=True):
        seen = [token for token in row if token != 0]
        second = seen.index(3) + 1 if pair else len(seen)
        wanted = hidden_states(kind, seen, second).mean(0) @ head.T + bias
        assert np.abs(answer - wanted).max() < 1e-5


def test_how_far_a_row_is_filled_up_changes_nothing(tmp_path: Path) -> None:
    found = read_pretrained(encoder_folder(tmp_path))
    model = found.into(TextEncoder(found.shape, 3)).eval()
    short = torch.tensor([[2, 12, 4, 3]])
    with torch.no_grad():
        assert torch.allclose(model(short), model(torch.nn.functional.pad(short, (0, 20))), atol=1e-6)
        assert torch.isfinite(model(torch.zeros(1, 4, dtype=torch.long))).all(), "a row of nothing"


def test_a_shallower_student_has_every_other_layer_of_the_teacher(tmp_path: Path) -> None:
    found = read_pretrained(encoder_folder(tmp_path))
    student = found.into(TextEncoder(found.shape, 3, layers=[1]))
    assert list(student.layers) == ["1"]
    theirs = torch.from_numpy(tensors("bert")["encoder.layer.1.output.dense.weight"])
    assert torch.equal(student.state_dict()["layers.1.down.weight"], theirs)


def change(folder: Path, **config: object) -> None:
    told = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps({key: value for key, value in told.items() if value is not None}))


def without(folder: Path, name: str) -> None:
    weights = tensors("bert")
    del weights[name]
    save_file(weights, folder / "model.safetensors")


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("harm", "text"),
    [
        (lambda f: (f / "config.json").unlink(), "has no config.json: name the folder that save_pretrained"),
        (lambda f: (f / "config.json").write_text("{"), "is not JSON"),
        (lambda f: change(f, model_type="gpt2"), "is of type 'gpt2'; models of the types bert, roberta"),
        (lambda f: change(f, auto_map={"AutoModel": "theirs.Model"}), "code of its own .auto_map., which is not run"),
        (lambda f: change(f, hidden_act="silu"), "has the activation 'silu'; known are gelu, gelu_python, gelu_new"),
        (lambda f: change(f, position_embedding_type="relative_key"), "has places of the type 'relative_key'"),
        (lambda f: change(f, hidden_size=None), "does not say 'hidden_size'"),
        (lambda f: change(f, hidden_size=16), r"word_embeddings.weight in .* is \[14, 8\]; config.json asks for"),
        (lambda f: change(f, num_hidden_layers=3), r"lack 16 of the tensors .* such as 'encoder.layer.2.attention"),
        (pickled, r"only pickled weights .pytorch_model.bin., which run code .*safe_serialization=True"),
        (lambda f: (f / "model.safetensors").unlink(), "has no weights"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 99), "model.safetensors is damaged"),
        (lambda f: without(f, "encoder.layer.0.output.dense.bias"), "such as 'encoder.layer.0.output.dense.bias'"),
    ],
)
def test_what_cannot_be_read_says_why_and_what_to_do(tmp_path: Path, harm: Callable[[Path], object], text: str) -> None:
    folder = encoder_folder(tmp_path)
    harm(folder)
    with pytest.raises(DataReadError, match=text):
        read_pretrained(folder)


def test_what_ends_a_text_is_found_where_it_is_said(tmp_path: Path) -> None:
    folder = encoder_folder(tmp_path)
    assert read_shape(folder).separator is None
    change(folder, sep_token_id=7)
    assert read_shape(folder, pair=True).separator == 7
    change(folder, sep_token_id=None)
    with pytest.raises(DataReadError, match=r"neither config.json .sep_token_id. nor tokenizer.json .* ends a text"):
        read_shape(folder, pair=True)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [{"id": 3, "content": "[SEP]"}]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert read_shape(folder, pair=True).separator == 3


def test_a_tokenizer_must_be_the_models(tmp_path: Path) -> None:
    folder = encoder_folder(tmp_path)
    rows = read_shape(folder).vocabulary
    assert read_tokenizer(folder, rows=rows, pad=0).encode("The films").ids == [2, 12, 6, 8, 3]
    write_tokenizer(folder, "one", "too", "many")
    with pytest.raises(DataReadError, match=r"gives ids up to 16, but the model's table of tokens has 14 rows"):
        read_tokenizer(folder, rows=rows, pad=0)
    with pytest.raises(DataReadError, match="has no token with the id 99"):
        read_tokenizer(folder, rows=100, pad=99)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(DataReadError, match="is no tokenizer"):
        read_tokenizer(folder, rows=rows, pad=0)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(DataReadError, match=r"has no tokenizer.json; write one with transformers: AutoTokenizer"):
        read_tokenizer(folder, rows=rows, pad=0)
