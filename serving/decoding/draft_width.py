"""How many guessed tokens are worth verifying: as many as are expected to save more time than they take.

Every choice gives the same text, so it may follow the clock. What a piece takes is a line in its tokens, learned from
all texts of a model; how often a guess is right is learned for each text.
"""

from __future__ import annotations

_MOST = 15
_FORGET_PIECE, _FORGET_TEXT = 0.98, 0.85
_EXPECTED = 0.6
"""Share of right guesses before any was verified."""


class PieceClock:
    """Seconds that a piece of so many tokens takes, by weighted least squares."""

    def __init__(self) -> None:
        self._weight = self._m = self._mm = self._t = self._mt = 0.0

    def learn(self, tokens: int, seconds: float) -> None:
        """A piece took so long."""
        keep = _FORGET_PIECE
        self._weight = keep * self._weight + 1
        self._m = keep * self._m + tokens
        self._mm = keep * self._mm + tokens * tokens
        self._t = keep * self._t + seconds
        self._mt = keep * self._mt + tokens * seconds

    def seconds(self, tokens: int) -> float:
        """Of a piece of that many; in any unit until pieces of two lengths were seen."""
        spread = self._weight * self._mm - self._m * self._m
        if spread <= 1e-6 * self._mm:
            return 2.0 + tokens
        each = max(0.0, (self._weight * self._mt - self._m * self._t) / spread)
        return max(0.0, (self._t - each * self._m) / self._weight) + each * tokens


class DraftWidth:
    """For one text.

    Attributes:
        accepted, rejected: guessed tokens so far, by what became of them.
    """

    def __init__(self, clock: PieceClock) -> None:
        self._clock = clock
        self._right = self._tried = 0.0
        self.accepted = self.rejected = 0

    def learn(self, guessed: int, right: int) -> None:
        """Of so many guessed tokens the first were right."""
        self.accepted += right
        self.rejected += guessed - right
        if guessed:  # what came after a wrong one was not tried
            self._right = _FORGET_TEXT * self._right + right
            self._tried = _FORGET_TEXT * self._tried + right + (right < guessed)

    @property
    def most(self) -> int:
        """Tokens to guess now, an odd number: with the latest one they are read an even number at a time."""
        share = (self._right + _EXPECTED) / (self._tried + 1)
        clock, best, width, tokens, likely = self._clock, 0.0, 1, 1.0, 1.0
        for guessed in range(1, _MOST + 1):
            likely *= share
            tokens += likely  # Leviathan et al. 2023, arXiv:2211.17192, equation 1
            if guessed % 2 and (speed := tokens / clock.seconds(guessed + 1)) > best:
                best, width = speed, guessed
        return width
