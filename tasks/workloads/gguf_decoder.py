"""Decoders in GGUF files of llama.cpp: weights of any of its types as floats, and the tokenizer inside."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tasks.running.errors import DataReadError, SpecError
from tasks.workloads.causal_decoder import DecoderShape
from tasks.workloads.decoder_folder import PretrainedDecoder, fitting, frequencies
from tasks.workloads.text_tokenizer import tokenizers_library

if TYPE_CHECKING:
    from tokenizers import Tokenizer

GGUF_KINDS = ("llama", "qwen2", "qwen3")
_LONGEST = 8192
_NAMES = {
    "norm1": "attn_norm",
    "attention.query": "attn_q",
    "attention.key": "attn_k",
    "attention.value": "attn_v",
    "attention.out": "attn_output",
    "attention.query_norm": "attn_q_norm",
    "attention.key_norm": "attn_k_norm",
    "norm2": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
_CONTROL = (3, 4)
"""Types of tokens that are no text: control tokens, and those a user added."""
_WORDS = {
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+",
}
"""How text is cut before byte pairs are joined, as llama.cpp's llama-vocab.cpp names the ways."""
_BY_DIGIT = ("smollm", "refact", "starcoder")
_PLAIN = ("default", "gpt-2", "")


class GgufFile:
    """One file, opened.

    Args:
        path: of the file.

    Raises:
        SpecError: the library gguf is missing.
        DataReadError: it is no GGUF file, or of a type of model that is not known.
    """

    def __init__(self, path: Path) -> None:
        try:
            from gguf import GGUFReader
        except ImportError as error:
            raise SpecError("GGUF files need the library gguf: pip install 'winnow-mlops[llm]'") from error
        self.path = path
        try:
            self._reader: Any = GGUFReader(path)
        except Exception as error:  # the library raises what its arrays raise
            raise DataReadError(f"{path} is no GGUF file: {error}") from error
        self.kind = str(self._told("general.architecture"))
        if self.kind not in GGUF_KINDS:
            raise DataReadError(f"{path} is of type {self.kind!r}; types that can be read: {', '.join(GGUF_KINDS)}")

    def decoder(self) -> PretrainedDecoder:
        """Shape and weights."""
        shape = self.shape()
        return PretrainedDecoder(shape, fitting(dict(self._weights(shape)), shape, str(self.path)))

    def chat_template(self) -> str | None:
        """How a conversation becomes a prompt, if the file says so."""
        told = self._told("tokenizer.chat_template", "")
        return str(told) or None

    def tokenizer(self) -> Tokenizer:
        """Byte pairs as the file lists them.

        Raises:
            DataReadError: it has a tokenizer of another kind.
        """
        kind, way = self._told("tokenizer.ggml.model"), str(self._told("tokenizer.ggml.pre", "default"))
        if kind != "gpt2" or way not in (*_PLAIN, *_BY_DIGIT, *_WORDS):
            raise DataReadError(
                f"{self.path} has a tokenizer of the kind {kind!r}, {way!r}; put the model's tokenizer.json beside it"
            )
        library = tokenizers_library()
        tokens, kinds = self._told("tokenizer.ggml.tokens"), self._told("tokenizer.ggml.token_type", [])
        merges = [tuple(pair.split(" ", 1)) for pair in self._told("tokenizer.ggml.merges")]
        made: Tokenizer = library.Tokenizer(
            library.models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=merges)
        )
        by_bytes = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=way not in _WORDS)
        first = []
        if way in _BY_DIGIT:
            first = [library.pre_tokenizers.Digits(individual_digits=True)]
        elif way in _WORDS:
            first = [library.pre_tokenizers.Split(library.Regex(_WORDS[way]), behavior="isolated")]
        made.pre_tokenizer = library.pre_tokenizers.Sequence([*first, by_bytes])
        made.decoder = library.decoders.ByteLevel()
        special = [token for token, kind in zip(tokens, kinds, strict=False) if kind in _CONTROL]
        made.add_special_tokens(special)
        return made

    def shape(self) -> DecoderShape:
        """The shape alone.

        Raises:
            DataReadError: the file does not say all of it, or has a part that is not known here.
        """
        heads, features = int(self._of_kind("attention.head_count")), int(self._of_kind("embedding_length"))
        size = int(self._of_kind("attention.key_length", features // heads))
        names = {tensor.name for tensor in self._reader.tensors}
        scaling = self._of_kind("rope.scaling.type", "none")
        if scaling not in ("none", "") or "rope_freqs.weight" in names:
            raise DataReadError(
                f"{self.path} scales its places ({scaling}), which is not read from GGUF files; bring the folder that "
                "save_pretrained() of transformers wrote"
            )
        begin, end = self._told("tokenizer.ggml.bos_token_id", None), self._told("tokenizer.ggml.eos_token_id", None)
        return DecoderShape(
            vocabulary=len(self._told("tokenizer.ggml.tokens")),
            features=features,
            layers=int(self._of_kind("block_count")),
            heads=heads,
            kv_heads=int(self._of_kind("attention.head_count_kv", heads)),
            head_size=size,
            hidden=int(self._of_kind("feed_forward_length")),
            context=min(_LONGEST, int(self._of_kind("context_length"))),
            rotation=frequencies(size, float(self._of_kind("rope.freq_base", 10_000.0))),
            epsilon=float(self._of_kind("attention.layer_norm_rms_epsilon")),
            biases="qkv" if "blk.0.attn_q.bias" in names else "none",
            head_norms="blk.0.attn_q_norm.weight" in names,
            tied="output.weight" not in names,
            begin=None if begin is None else int(begin),
            end=() if end is None else (int(end),),
        )

    def _weights(self, shape: DecoderShape) -> Iterator[tuple[str, Tensor | None]]:
        tensors = {tensor.name: tensor for tensor in self._reader.tensors}

        def read(name: str) -> Tensor | None:
            return _floats(tensors[name]) if name in tensors else None

        yield "words.weight", read("token_embd.weight")
        yield "norm.weight", read("output_norm.weight")
        if not shape.tied:
            yield "head.weight", read("output.weight")
        for number in range(shape.layers):
            for ours, theirs in _NAMES.items():
                for part in ("weight", "bias"):
                    found = read(f"blk.{number}.{theirs}.{part}")
                    if found is not None and self.kind == "llama" and theirs in ("attn_q", "attn_k"):
                        found = _halves(found, shape.heads if theirs == "attn_q" else shape.kv_heads)
                    yield f"layers.{number}.{ours}.{part}", found

    def _of_kind(self, name: str, *default: Any) -> Any:
        return self._told(f"{self.kind}.{name}", *default)

    def _told(self, name: str, *default: Any) -> Any:
        field = self._reader.get_field(name)
        if field is None:
            if default:
                return default[0]
            raise DataReadError(f"{self.path} does not say {name!r}")
        return field.contents()


def _floats(tensor: Any) -> Tensor:
    from gguf.quants import dequantize

    values = dequantize(tensor.data, tensor.tensor_type)
    return torch.from_numpy(np.array(values, np.float32))


def _halves(weight: Tensor, heads: int) -> Tensor:
    """Rows of heads whose pairs are neighbours, as llama.cpp has them, so that they are half a head apart."""
    rows = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    return rows.swapaxes(1, 2).reshape(weight.shape)


def read_chat_template(folder: Path) -> str | None:
    """How a conversation becomes a prompt, as a folder of transformers says it.

    Raises:
        DataReadError: tokenizer_config.json is not JSON.
    """
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text()
    file = folder / "tokenizer_config.json"
    if not file.is_file():
        return None
    try:
        told = json.loads(file.read_text()).get("chat_template")
    except ValueError as error:
        raise DataReadError(f"{file} is not JSON: {error}") from error
    if isinstance(told, list):  # several by name
        told = next((each.get("template") for each in told if each.get("name") == "default"), None)
    return str(told) if told else None
