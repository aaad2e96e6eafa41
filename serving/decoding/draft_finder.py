"""Guesses how a text goes on: as its prediction, its prompt or its own beginning went on after the same tokens.

Prompt lookup (Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding): a guess costs hardly anything.
"""

from __future__ import annotations

from collections.abc import Sequence

_LENGTHS = (3, 2)
"""Tokens that must have been the same; more of them are looked for first."""
_END = -1
"""Behind the prediction; no token has this number."""


class DraftFinder:
    """Of one text.

    Args:
        prediction: tokens that the text may have; it is followed from its beginning. Empty: there is none.
        prompt: tokens before the text.
    """

    def __init__(self, prediction: Sequence[int], prompt: Sequence[int]) -> None:
        self._tokens = [*prediction, _END]
        self._nowhere = self._next = len(prediction)
        """Places of what comes next: where nothing does, and where a token is expected."""
        self._after: dict[tuple[int, ...], int] = {}
        """The place behind these tokens, where they were last."""
        for end in range(1, len(prediction)):
            self._note(end)
        for token in prompt:
            self._next = self._append(token)
        if prediction:
            self._next = 0

    def add(self, token: int) -> None:
        """The text has gone on with this token."""
        right = self._tokens[self._next] == token
        found = self._append(token)
        self._next += 1
        if not right or self._tokens[self._next] == _END:
            self._next = found

    def draft(self, most: int) -> list[int]:
        """At most so many tokens that may come next."""
        found = self._tokens[self._next : self._next + most]
        return found[: found.index(_END)] if _END in found else found

    def _append(self, token: int) -> int:
        """The place of what came next when the last tokens were there before."""
        self._tokens.append(token)
        last = [tuple(self._tokens[-length:]) for length in _LENGTHS]
        found = next((self._after[tokens] for tokens in last if tokens in self._after), self._nowhere)
        self._note(len(self._tokens))
        return found

    def _note(self, end: int) -> None:
        for length in _LENGTHS:
            if length <= end:
                self._after[tuple(self._tokens[end - length : end])] = end
