"""A variant that reads text: what it answers tells which ids it was given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from encoder_folders import write_tokenizer
from onnx import helper, numpy_helper
from onnx_models import save
from tokenizers import Tokenizer

from model_registry.manifest import describe_folder
from model_registry.text_input import TEXT_INPUT, TOKENIZER, TextInput
from model_registry.variant import TensorSpec, Variant

TOKENS = TensorSpec(name="tokens", datatype="INT64", shape=(-1, -1))


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
    write_tokenizer(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    (folder / "tokenizer.json").unlink()
    tokenizer.enable_truncation(max_length=most)
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]", pad_to_multiple_of=16)
    source = TextInput(input="tokens", texts=2 if texts == 2 else 1)
    files: dict[str, bytes] = {TOKENIZER: tokenizer.to_str().encode(), TEXT_INPUT: source.to_json()}
    for name, content in (files | {name: text.encode() for name, text in more.items()}).items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return Variant.model_validate(variant.model_dump() | {"digest": "", "files": describe_folder(folder)})
