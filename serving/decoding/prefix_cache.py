"""Keys and values of prompts that were read before, by their first tokens: a shared beginning is read once."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import numpy as np

from serving.tensors import Array

PIECE = 16
"""Tokens of a prompt that are kept together."""


class PrefixCache:
    """Pieces by all tokens up to their end; what was not used for longest goes first.

    A piece depends on nothing but these tokens: read in whatever pieces, a prompt has the same keys and values to the
    bit.

    Args:
        most: bytes that are kept.
    """

    def __init__(self, most: int) -> None:
        self._most, self._bytes = most, 0
        self._kept: OrderedDict[bytes, Array] = OrderedDict()

    def find(self, tokens: Sequence[int]) -> list[Array]:
        """The pieces with which the tokens begin; the last token is never among them, for its logits are wanted."""
        found = list[Array]()
        for name in piece_names(tokens[: len(tokens) - 1]):
            if name not in self._kept:
                break
            self._kept.move_to_end(name)
            found.append(self._kept[name])
        return found

    def keep(self, name: bytes, piece: Array) -> None:
        """Keep a piece under the name that :func:`piece_names` gives it."""
        if name in self._kept or piece.nbytes > self._most:
            return
        self._kept[name] = piece
        self._bytes += piece.nbytes
        while self._bytes > self._most:
            _, gone = self._kept.popitem(last=False)
            self._bytes -= gone.nbytes

    def __contains__(self, name: bytes) -> bool:
        return name in self._kept


def piece_names(tokens: Sequence[int]) -> Iterator[bytes]:
    """A name for each whole piece: a hash of all tokens up to its end."""
    name = b""
    for start in range(0, len(tokens) - PIECE + 1, PIECE):
        part = np.array(tokens[start : start + PIECE], np.int64).tobytes()
        name = hashlib.blake2b(name + part, digest_size=16).digest()
        yield name
