"""Text in place of token ids: the tokenizer that travels with a model, an asset of the variant."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from model_registry.variant import Record

TOKENIZER = "assets/tokenizer.json"
"""As the library tokenizers writes it, set to cut and to fill up."""
TEXT_INPUT = "assets/text_input.json"
DECODER = "assets/decoder.json"
"""How a model continues text, see :mod:`model_registry.decoder_form`."""
CHAT_TEMPLATE = "assets/chat_template.jinja"
"""How a conversation becomes a prompt, as a template of Jinja."""
TEXT = "text"
"""Name of the input that clients see."""


class TextInput(Record):
    """Where the ids go: the name of the graph's input, and how many texts a row is.

    ``words``: an answer of the graph is for each token, and clients are told that of each word's first one.
    """

    input: str
    texts: Literal[1, 2] = 1
    words: bool = False


def first_pieces(text: str, offsets: Iterable[tuple[int, int]]) -> list[int]:
    """For each token the number of the word that it begins, -1 for all others; what spaces divide are words.

    Args:
        offsets: of each token the places of its first letter and of the one behind it, equal for tokens that are none
            of the text's; some tokenizers count the space before a word as its token's.
    """
    places, word_at, number = list(offsets), list[int](), -1
    for place, letter in enumerate(text[: max((end for _, end in places), default=0)]):  # what is cut may be long
        number += not letter.isspace() and (place == 0 or text[place - 1].isspace())
        word_at.append(-1 if letter.isspace() else number)
    found, last = list[int](), -1
    for start, end in places:
        word = next((word for word in word_at[start:end] if word >= 0), -1)
        found.append(word if word > last else -1)
        last = max(last, word)
    return found


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
