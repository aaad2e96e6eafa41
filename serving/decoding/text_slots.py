"""Which text has which slot of a session: texts that take steps together have the first ones, without a gap.

Behind them is the one whose prompt is being read; from the other end come those that go on by themselves.
"""

from __future__ import annotations

from collections.abc import Iterator

from serving.decoding.continued_text import Continued
from serving.decoding.token_session import TokenSession


class TextSlots:
    """The texts that have a slot.

    Attributes:
        together: by their slots. ``apart``: by theirs, from the last one down. ``filling``: whose prompt is being read.
    """

    def __init__(self, session: TokenSession) -> None:
        self._session = session
        self.together: list[Continued] = []
        self.apart: list[Continued] = []
        self.filling: Continued | None = None

    def __iter__(self) -> Iterator[Continued]:
        yield from self.together
        yield from self.apart
        if self.filling is not None:
            yield self.filling

    @property
    def full(self) -> bool:
        return len(self.together) + len(self.apart) >= self._session.slots

    @property
    def company(self) -> int:
        """Tokens of whoever has the slot behind those that take steps together; 0 for nobody."""
        return next((text.seen for text in self if text.slot == len(self.together)), 0)

    def begin(self, text: Continued) -> None:
        """The prompt of this text is read from now on."""
        text.slot, self.filling = len(self.together), text

    def seat(self) -> None:
        """The prompt was read: the text goes on, with the others or by itself."""
        text, self.filling = self.filling, None
        assert text is not None
        if text.drafts is None:
            self.together.append(text)
            return
        self._move(text, self._session.slots - 1 - len(self.apart))
        self.apart.append(text)

    def leave(self, text: Continued) -> None:
        """Take a text away; another one moves into its place."""
        free = text.slot
        if text is self.filling:
            self.filling = None
        elif text in self.apart:
            last = self.apart.pop()
            if last is not text:
                self.apart[self.apart.index(text)] = last
                free = self._move(last, free)
        else:
            last = self.together.pop()
            if last is not text:
                self.together[free] = last
                free = self._move(last, free)
            if self.filling is not None:
                free = self._move(self.filling, free)
        self._session.release(free, text.seen)

    def _move(self, text: Continued, slot: int) -> int:
        """Give the text another slot; the one that it had."""
        had, text.slot = text.slot, slot
        if had != slot:
            self._session.move(had, slot, text.seen)
        return had
