"""Text in place of token ids: the tokenizer that travels with a model, an asset of the variant."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from model_registry.variant import Record

TOKENIZER = "assets/tokenizer.json"
"""As the library tokenizers writes it, set to cut and to fill up."""
TEXT_INPUT = "assets/text_input.json"
TEXT = "text"
"""Name of the input that clients see."""


class TextInput(Record):
    """Where the ids go: the name of the graph's input, and how many texts a row is."""

    input: str
    texts: Literal[1, 2] = 1


def texts_of(tokenizer: bytes, ids: Iterable[int], *, texts: int) -> list[str]:
    """The texts of a row of ids, about as they were: case and spaces may be lost.

    Args:
        tokenizer: bytes of tokenizer.json. ``texts``: how many a row is.
    """
    from tokenizers import Tokenizer

    found = Tokenizer.from_buffer(tokenizer)
    separator = next((i for i in map(found.token_to_id, ("[SEP]", "</s>")) if i is not None), -1)
    parts: list[list[int]] = [[]]
    for number in ids:
        if number == separator:
            parts.append([])
        else:
            parts[-1].append(number)
    return [text for text in (found.decode(part).strip() for part in parts) if text][:texts]
