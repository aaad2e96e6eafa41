"""Hands what was noted of requests on to whoever keeps it, in a thread beside the loop."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Sequence
from typing import Protocol

from serving.telemetry.request_notes import RequestNotes

_TURN_SECONDS = 0.25
_CHUNK = 32
"""Requests written before the loop may have Python's lock again."""
MOST_WAITING = 1 << 16
_END_SECONDS = 5.0
log = logging.getLogger("winnow.serving")


class RequestSink(Protocol):
    """Keeps what was noted; called by one thread, which it may hold up."""

    def write(self, ended: Sequence[RequestNotes]) -> None:
        """Keep these; what cannot be kept is lost, and the log says so."""

    def close(self) -> None:
        """There will be no more."""


class RequestWatch:
    """Takes the notes of ended requests; those that come faster than they can be kept are lost, and counted.

    Attributes:
        lost: requests of which nothing was kept.
    """

    def __init__(self, sinks: Sequence[RequestSink]) -> None:
        self.lost = 0
        self._sinks = sinks
        self._ended: list[RequestNotes] = []
        self._batches: queue.SimpleQueue[list[RequestNotes] | None] = queue.SimpleQueue()
        # Not one of asyncio's threads: those are waited for at the end, and a reader of a pipe may never come back.
        self._thread = threading.Thread(target=self._write, name="request watch", daemon=True)
        self._thread.start()

    def done(self, notes: RequestNotes) -> None:
        """A request has ended."""
        if len(self._ended) < MOST_WAITING:
            self._ended.append(notes)
        else:
            self.lost += 1

    def tick(self) -> None:
        """Hand on what there is: not at once, for the engine's part is noted after the answer."""
        if self._ended and self._batches.empty():
            ended, self._ended = self._ended, []
            self._batches.put(ended)

    async def keep(self) -> None:
        """Hand on again and again."""
        lost = 0
        while True:
            await asyncio.sleep(_TURN_SECONDS)
            self.tick()
            if self.lost > lost:
                log.error("%d requests are not in the access log or traces: they came too fast", self.lost - lost)
                lost = self.lost

    async def close(self) -> None:
        """Hand on the rest and wait a moment for it to be kept."""
        self._batches.put(self._ended)
        self._ended = []
        self._batches.put(None)
        await asyncio.to_thread(self._thread.join, _END_SECONDS)

    def _write(self) -> None:
        while (batch := self._batches.get()) is not None:
            for start in range(0, len(batch), _CHUNK):
                for sink in self._sinks:
                    self._hand(sink, batch[start : start + _CHUNK])
                time.sleep(0)
        for sink in self._sinks:
            sink.close()

    def _hand(self, sink: RequestSink, ended: Sequence[RequestNotes]) -> None:
        try:
            sink.write(ended)
        except Exception:
            log.exception("%d requests are not in the %s", len(ended), type(sink).__name__)
