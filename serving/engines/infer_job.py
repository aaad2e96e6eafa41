"""One inference request on its way: from the front to an engine and back."""

from __future__ import annotations

from abc import ABC, abstractmethod

from serving.engines.engine_frames import PLAIN, Answered
from serving.telemetry.request_notes import RequestNotes


class InferJob(ABC):
    """A request that is kept until it is answered, so that an engine's death costs nobody an answer.

    Attributes:
        body: as it was sent, packed or not.
        json_bytes, packing: see :class:`serving.engines.engine_frames.Asked`.
        began: when it was complete, by the monotonic clock in seconds; ``sent``: when an engine got it.
        tries: engines that died with it.
        notes: to be filled with who answered it, and how long that took; None where nobody will read them.
    """

    __slots__ = ("began", "body", "json_bytes", "notes", "packing", "sent", "tries")

    def __init__(self, body: bytes, json_bytes: int = -1, packing: int = PLAIN, *, began: float) -> None:
        self.body, self.json_bytes, self.packing = body, json_bytes, packing
        self.began, self.sent, self.tries = began, 0.0, 0
        self.notes: RequestNotes | None = None

    @property
    def wanted(self) -> bool:
        """Whether anybody still waits for the answer."""
        return True

    @abstractmethod
    def deliver(self, answered: Answered) -> None:
        """Called once, with the answer."""
