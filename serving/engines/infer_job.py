"""One inference request on its way: from the front to an engine and back."""

from __future__ import annotations

import math
import re
import time
from abc import ABC, abstractmethod

from serving.engines.engine_frames import DEFLATE, GZIP, PLAIN, Answered
from serving.telemetry.request_notes import RequestNotes

_TIMEOUT = re.compile(rb'"timeout"\s*:\s*([0-9]{1,15})')
"""In JSON nothing but a member's name has a quote on both sides and a colon behind it; tensors have none so named."""
_ENDS = 512
"""Bytes at both ends of the JSON part that are looked at: clients put it before their tensors or behind them."""


class InferJob(ABC):
    """A request that is kept until it is answered, so that an engine's death costs nobody an answer.

    Attributes:
        body: as it was sent, packed or not.
        json_bytes, packing: see :class:`serving.engines.engine_frames.Asked`.
        began: when it was complete, by the monotonic clock in seconds; ``sent``: when an engine got it.
        tries: engines that died with it.
        deadline: after which nobody waits for the answer, by the same clock; for ever where it is not known.
        notes: to be filled with who answered it, and how long that took; None where nobody will read them.
    """

    __slots__ = ("began", "body", "deadline", "json_bytes", "notes", "packing", "sent", "tries")

    def __init__(self, body: bytes, json_bytes: int = -1, packing: int = PLAIN, *, began: float) -> None:
        self.body, self.json_bytes, self.packing = body, json_bytes, packing
        self.began, self.sent, self.tries = began, 0.0, 0
        self.deadline = math.inf
        self.notes: RequestNotes | None = None

    @property
    def wanted(self) -> bool:
        """Whether anybody still waits for the answer."""
        return True

    def seconds_left(self) -> float:
        """Until its ``timeout``, which is looked for now; for ever where none is found.

        What it is, only the engine knows: this is a look at a body that is not packed, before it waits for long.
        """
        if self.packing & (GZIP | DEFLATE) or not self.json_bytes:
            return math.inf
        end = len(self.body) if self.json_bytes < 0 else min(self.json_bytes, len(self.body))
        found = _TIMEOUT.search(self.body, 0, min(end, _ENDS)) or _TIMEOUT.search(self.body, max(0, end - _ENDS), end)
        if found is not None and (microseconds := int(found[1])):
            self.deadline = self.began + microseconds / 1e6
        return self.deadline - time.monotonic()

    @abstractmethod
    def deliver(self, answered: Answered) -> None:
        """Called once, with the answer."""
