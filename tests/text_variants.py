"""A variant that reads text: what it answers tells which ids it was given."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from encoder_folders import write_tokenizer
from onnx import helper, numpy_helper
from onnx_models import save
from tokenizers import Tokenizer

from model_registry.answer_labels import ONE_PER_WORD
from model_registry.manifest import describe_folder
from model_registry.text_input import TEXT_INPUT, TOKENIZER, TextInput
from model_registry.variant import TensorSpec, Variant

TOKENS = TensorSpec(name="tokens", datatype="INT64", shape=(-1, -1))


def tagging(folder: Path) -> Variant:
    """Answers ``logits`` [N, 2, length]: the id of each token less 8, and 0. So its tag is ``late`` from the ninth word
    of the vocabulary on, else ``early``."""
    nodes = [
        helper.make_node("Cast", ["tokens"], ["ids"], to=1),
        helper.make_node("Sub", ["ids", "eight"], ["late"]),
        helper.make_node("Sub", ["ids", "ids"], ["early"]),
        helper.make_node("Unsqueeze", ["late", "one"], ["lates"]),
        helper.make_node("Unsqueeze", ["early", "one"], ["earlies"]),
        helper.make_node("Concat", ["lates", "earlies"], ["logits"], axis=1),
    ]
    constants = [
        numpy_helper.from_array(np.array(8, np.float32), "eight"),
        numpy_helper.from_array(np.array([1]), "one"),
    ]
    logits = TensorSpec(name="logits", datatype="FP32", shape=(-1, 2, -1))
    variant = save(folder, nodes, [TOKENS], [logits], constants)
    labels = {ONE_PER_WORD: json.dumps(["late", "early"])}
    return _with_tokenizer(folder, variant, TextInput(input="tokens", words=True), most=32, more=labels)


def reading(folder: Path, *, texts: int = 1, most: int = 32, **more: str) -> Variant:
    """Answers ``seen`` [N, 2]: how many tokens are no padding, and the sum of their ids."""
    nodes = [
        helper.make_node("Cast", ["tokens"], ["ids"], to=1),
        helper.make_node("Sign", ["ids"], ["signs"]),
        helper.make_node("ReduceSum", ["signs", "axes"], ["count"], keepdims=1),
        helper.make_node("ReduceSum", ["ids", "axes"], ["sum"], keepdims=1),
        helper.make_node("Concat", ["count", "sum"], ["seen"], axis=1),
    ]
    seen = TensorSpec(name="seen", datatype="FP32", shape=(-1, 2))
    variant = save(folder, nodes, [TOKENS], [seen], [numpy_helper.from_array(np.array([1]), "axes")])
    return _with_tokenizer(
        folder, variant, TextInput(input="tokens", texts=2 if texts == 2 else 1), most=most, more=more
    )


def measuring(folder: Path) -> Variant:
    """Answers ``seen`` [N, 2]: the sum of a row's ids, and how long the rows were that it was asked with."""
    nodes = [
        helper.make_node("Cast", ["tokens"], ["ids"], to=1),
        helper.make_node("ReduceSum", ["ids", "axes"], ["sum"], keepdims=1),
        helper.make_node("Mul", ["ids", "nothing"], ["none"]),
        helper.make_node("Add", ["none", "each"], ["ones"]),
        helper.make_node("ReduceSum", ["ones", "axes"], ["length"], keepdims=1),
        helper.make_node("Concat", ["sum", "length"], ["seen"], axis=1),
    ]
    constants = [
        numpy_helper.from_array(np.array([1]), "axes"),
        numpy_helper.from_array(np.array(0, np.float32), "nothing"),
        numpy_helper.from_array(np.array(1, np.float32), "each"),
    ]
    seen = TensorSpec(name="seen", datatype="FP32", shape=(-1, 2))
    variant = save(folder, nodes, [TOKENS], [seen], constants)
    return _with_tokenizer(folder, variant, TextInput(input="tokens"), most=64, more={})


def _with_tokenizer(folder: Path, variant: Variant, source: TextInput, *, most: int, more: dict[str, str]) -> Variant:
    write_tokenizer(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    (folder / "tokenizer.json").unlink()
    tokenizer.enable_truncation(max_length=most)
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]", pad_to_multiple_of=16)
    files: dict[str, bytes] = {TOKENIZER: tokenizer.to_str().encode(), TEXT_INPUT: source.to_json()}
    for name, content in (files | {name: text.encode() for name, text in more.items()}).items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return Variant.model_validate(variant.model_dump() | {"digest": "", "files": describe_folder(folder)})
