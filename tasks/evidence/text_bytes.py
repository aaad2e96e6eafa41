"""Bits per byte: what a text costs whatever its tokens are, so that models of different tokenizers can be compared."""

from __future__ import annotations

import json
import math
import re

import numpy as np
from numpy.typing import NDArray

from model_registry.store import Store
from model_registry.text_input import DECODER, TOKENIZER
from model_registry.variant import Variant
from tasks.evidence.arrays import Array

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def bits_per_byte(store: Store, variant: Variant, outputs: Array, tokens: Array) -> float | None:
    """What a byte of the texts costs on average, in bits; None for a variant that does not continue text.

    Args:
        outputs: log-probabilities [N, length - 1] in nats, of each token after the first.
        tokens: [N, length], of the tokenizer that travels with the variant.
    """
    files = {file.path: file for file in variant.files}
    if DECODER not in files:
        return None
    lengths = token_lengths(store.fetch_bytes(files[TOKENIZER]))
    text = int(lengths[tokens[:, 1:]].sum())
    return float(-outputs.sum(dtype=np.float64) / math.log(2) / text) if text else None


def token_lengths(tokenizer: bytes) -> NDArray[np.int64]:
    """Bytes of text that each token stands for, by its id; 0 for tokens that are no part of a text, as its end.

    Args:
        tokenizer: bytes of tokenizer.json.
    """
    from tokenizers import Tokenizer

    document = json.loads(tokenizer)
    added = {token["id"]: token for token in document.get("added_tokens", ())}
    by_letter = "ByteLevel" in json.dumps(document.get("decoder"))  # then a letter is a byte
    spelt = Tokenizer.from_buffer(tokenizer).get_vocab(with_added_tokens=True)
    found = np.zeros(max(spelt.values(), default=-1) + 1, np.int64)
    for text, token in spelt.items():
        if token in added:
            found[token] = 0 if added[token]["special"] else len(text.encode())
        elif by_letter:
            found[token] = len(text)
        else:
            found[token] = 1 if _BYTE.fullmatch(text) else len(text.replace("▁", " ").encode())
    return found
