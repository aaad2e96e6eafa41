"""An engine in the front's own process, for ``WINNOW_ENDPOINT_ISOLATION=none``.

It saves the way to another process and back, which for a single connection is most of the time; a model that crashes,
or takes long, then takes everything with it, so each is tried in a process of its own first. It looks to the front like
any other engine: its transport runs what is sent.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from model_registry.variant import Variant
from serving.engines.engine_link import EngineLink, Heard
from serving.engines.frame_worker import FrameWorker
from serving.engines.nursery_link import Nursery
from serving.limits import RequestLimits


async def start_inline(
    folder: Path, variant: Variant, heard: Heard, limits: RequestLimits, *, name: tuple[str, str]
) -> EngineLink:
    """Load and warm the variant in a process that is thrown away, and then here, beside whatever is being answered.

    Raises:
        CpuClassMismatch, UnsafeModel, EngineLoadError, ManifestMismatch: the variant cannot be run here.
        LoadFailed: it takes too long, or kills its process.
    """
    nursery = Nursery()
    try:
        trial = await EngineLink.start(nursery, folder, variant, _unheard, name=name, seconds=limits.load_seconds)
        await trial.stop()
    finally:
        await nursery.close()
    manifest = variant.model_dump(mode="json", by_alias=True)
    order = {"folder": str(folder.absolute()), "variant": manifest, "model": name[0], "version": name[1]}
    worker = await asyncio.to_thread(FrameWorker, order, limits)
    link = EngineLink(heard)
    link.pid = os.getpid()
    link.begin(cast(asyncio.Transport, _InlineTransport(worker, link)), worker.ready)
    return link


def _unheard(*_: object) -> None:
    """Nobody asks an engine that is tried."""


class _InlineTransport:
    """Runs the frames that are written to it, and hands their answers back at once."""

    def __init__(self, worker: FrameWorker, link: EngineLink) -> None:
        self._worker, self._link, self._closed = worker, link, False

    def writelines(self, parts: Sequence[bytes | memoryview]) -> None:
        answers = _Answers()
        self._worker.answer(answers, b"".join(parts))
        for frame in answers.frames:
            self._link.data_received(frame)

    def is_closing(self) -> bool:
        return self._closed

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._link.connection_lost(None)
            self._link.ended("it was closed")

    abort = close


class _Answers:
    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def sendall(self, data: bytes, /) -> Any:
        self.frames.append(data)
