"""Text in place of token ids: the tokenizer that travels with a model, an asset of the variant."""

from __future__ import annotations

from typing import Literal

from model_registry.variant import Record

TOKENIZER = "assets/tokenizer.json"
"""As the library tokenizers writes it, set to cut and to fill up."""
TEXT_INPUT = "assets/text_input.json"


class TextInput(Record):
    """Where the ids go: the name of the graph's input, and how many texts a row is."""

    input: str
    texts: Literal[1, 2] = 1
