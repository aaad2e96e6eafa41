"""Text that grows token by token: whole characters only, and nothing that may turn out to be the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class SpokenText:
    """What an answer says so far.

    Args:
        tokenizer: of the model.
        stop: texts at which it ends; they are not part of it.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        from tokenizers.decoders import DecodeStream

        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._stream = DecodeStream(skip_special_tokens=True)
        self._tokens: list[int] = []
        self._said = 0
        """Characters that the stream has given."""
        self._held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """What can be said after one more token: characters that are whole and belong to no text that ends it."""
        self._tokens.append(token)
        piece = self._stream.step(self._tokenizer, token) or ""
        self._said += len(piece)
        return self._pass_on(piece)

    def rest(self) -> str:
        """What was held back, at the end: a character that never became whole as its replacement."""
        if self.stopped:
            return ""
        whole = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
        text = self._pass_on(whole[self._said :])
        held, self._held = self._held, ""
        return text + ("" if self.stopped else held)

    def _pass_on(self, piece: str) -> str:
        if not self._stop:
            return piece
        text = self._held + piece
        found = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of the text with which the other one begins."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
