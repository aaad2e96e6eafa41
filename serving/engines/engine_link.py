"""The front's side of one engine process: sends it frames of requests, hands out its answers, notices its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import orjson

from model_registry.cpu_class import CpuClassMismatch
from model_registry.gpu_class import GpuClassMismatch
from model_registry.manifest import ManifestMismatch
from model_registry.variant import TensorSpec, Variant
from serving.decoding.generation_order import GenerationLimits
from serving.engines.engine_frames import (
    DROP,
    PART,
    Answered,
    Asked,
    EngineWork,
    FrameCutter,
    MalformedFrame,
    pack_asked,
    unpack_answered,
)
from serving.engines.infer_job import InferJob
from serving.engines.nursery_link import Nursery
from serving.exceptions import EngineLoadError, LoadFailed
from serving.onnx_safety import UnsafeModel

_END_SECONDS = 5.0
_STATUS_SECONDS = 0.5
"""How long after its connection the nursery may tell how an engine ended."""
_LOAD_ERRORS = {kind.__name__: kind for kind in (CpuClassMismatch, GpuClassMismatch, UnsafeModel)}
log = logging.getLogger("winnow.serving")

Heard = Callable[["EngineLink", list[tuple[InferJob, int]], EngineWork], None]
"""Who is told of answers: the engine, the jobs with their statuses, what the engine did."""


class EngineLink(asyncio.Protocol):
    """One running engine process.

    Attributes:
        pid: of the process.
        inputs, outputs: tensor specs as it serves them.
        batching: what its batch certificate says.
        generation: how it continues text; None where it does not.
        load_seconds, load_cpu_seconds: what loading and warming up took inside the process.
        flying: jobs that it has, by number; in the order in which they were sent.
        frames: sent and not yet finished.
        answered: jobs so far.
        heard: when it last said anything, by the monotonic clock.
        gone: a future that ends with the reason once the process is dead or unusable.
    """

    def __init__(self, heard: Heard) -> None:
        loop = asyncio.get_running_loop()
        self.pid = 0
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()
        self.batching: dict[str, Any] = {}
        self.generation: GenerationLimits | None = None
        self.load_seconds = self.load_cpu_seconds = 0.0
        self.flying: dict[int, InferJob] = {}
        self.frames = self.answered = 0
        self.heard = time.monotonic()
        self.gone: asyncio.Future[str] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()
        """Done as soon as it can answer nothing any more, before it is known why."""
        self._loaded: asyncio.Future[tuple[int, bytes]] = loop.create_future()
        self._tell = heard
        self._cutter = FrameCutter()
        self._number = 0
        self._transport: asyncio.Transport | None = None
        self._pidfd = -1

    @classmethod
    async def start(
        cls,
        nursery: Nursery,
        folder: Path,
        variant: Variant,
        heard: Heard,
        *,
        name: tuple[str, str] = ("", ""),
        seconds: float = 120.0,
    ) -> EngineLink:
        """Start a process, load and warm the variant in it.

        Args:
            folder: holds the variant's files.
            name: model and version, for its answers.
            seconds: how long that may take.

        Raises:
            CpuClassMismatch, GpuClassMismatch, UnsafeModel, EngineLoadError: the variant cannot be run here.
            LoadFailed: it took longer than ``seconds`` or the process died; the process is ended.
        """
        link = cls(heard)
        manifest = variant.model_dump(mode="json", by_alias=True)
        order = {"folder": str(folder.absolute()), "variant": manifest, "model": name[0], "version": name[1]}
        link.pid, connection = await nursery.start_engine(order, link.ended)
        with contextlib.suppress(OSError, AttributeError):  # already gone, or another system than Linux
            link._pidfd = os.pidfd_open(link.pid)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: link, connection)
        try:
            async with asyncio.timeout(seconds):
                status, body = await link._loaded
            if status != 200:
                raise _load_error(orjson.loads(body))
        except TimeoutError as error:
            link.kill()
            raise LoadFailed(
                f"loading and warming up took longer than {seconds:g} s; the engine process was ended"
            ) from error
        except BaseException:
            link.kill()
            raise
        link._take_over(orjson.loads(body))
        return link

    def begin(self, transport: asyncio.Transport, said: dict[str, Any]) -> None:
        """Use an engine that is loaded already, behind this transport."""
        self._transport = transport
        self._loaded.set_result((200, b""))
        self._take_over(said)

    def send(self, jobs: Sequence[InferJob]) -> None:
        """Send the jobs as one frame; each is in ``flying`` until it is answered."""
        assert self._transport is not None
        now, asked = time.monotonic(), list[Asked]()
        for job in jobs:
            self._number = number = (self._number + 1) & 0xFFFFFFFF
            job.sent = now
            self.flying[number] = job
            asked.append(Asked(number, job.body, job.json_bytes, job.packing, job.began))
        self.frames += 1
        if self._transport.is_closing():  # its end is noticed in a moment, and then the jobs are given back
            return
        try:
            self._transport.writelines(pack_asked(asked))
        except (OSError, RuntimeError):  # uvloop raises the latter where it has noticed before us
            self._transport.abort()

    async def stop(self) -> None:
        """End the process: its connection is closed, and what does not end by itself is killed."""
        if self.gone.done() or self._transport is None:
            return
        self._transport.close()
        done, _ = await asyncio.wait([self.gone], timeout=_END_SECONDS)
        if not done:
            self.kill()
            await self.gone

    def kill(self) -> None:
        """End the process at once."""
        if not self.gone.done() and self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        if self._transport is not None:
            self._transport.abort()

    # -- asyncio's callbacks ------------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.heard = time.monotonic()
        try:
            for frame in self._cutter.feed(data):
                self._take(frame)
        except MalformedFrame as error:
            log.error("engine process %s: %s; it is killed", self.pid, error)
            self.kill()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._loaded.done():
            self._loaded.set_exception(LoadFailed("the engine process died while it loaded the model"))
            self._loaded.exception()  # seen: nobody may be waiting for it any more
        if not self.closed.done():
            self.closed.set_result(None)
        asyncio.get_running_loop().call_later(_STATUS_SECONDS, self.ended, "its connection was closed")

    # -- plumbing -----------------------------------------------------------------------------------------------
    def _take(self, frame: bytes) -> None:
        answers, work = unpack_answered(frame)
        if not self._loaded.done():
            self._loaded.set_result((answers[0].status, bytes(answers[0].body)))
            return
        self.frames -= work.done
        done = list[tuple[InferJob, int]]()
        for answered in answers:
            if answered.status == PART:
                self._take_part(answered)
                continue
            job = self.flying.pop(answered.number, None)
            if job is not None:
                job.deliver(answered)
                done.append((job, answered.status))
                self.answered += 1
        self._tell(self, done, work)

    def _take_part(self, answered: Answered) -> None:
        job = self.flying.get(answered.number)
        if job is None:
            return
        if job.wanted:
            job.sent = self.heard  # it is being answered: what is waited for is the next part
            job.deliver(answered)
        else:
            self.drop(answered.number)

    def drop(self, number: int) -> None:
        """Nobody waits for this answer any more."""
        self.flying.pop(number, None)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.writelines(pack_asked([Asked(number, b"", -1, DROP, 0.0)]))
            self.frames += 1

    def _take_over(self, said: dict[str, Any]) -> None:
        self.inputs = tuple(TensorSpec.model_validate(spec) for spec in said["inputs"])
        self.outputs = tuple(TensorSpec.model_validate(spec) for spec in said["outputs"])
        self.batching = said["batching"]
        self.generation = GenerationLimits.model_validate(said["generation"]) if "generation" in said else None
        self.load_seconds, self.load_cpu_seconds = said["seconds"], said["cpu_seconds"]

    def ended(self, how: str) -> None:
        """The process is gone; the first who knows says how."""
        if self.gone.done():
            return
        self.gone.set_result(how)
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        if self._transport is not None:
            self._transport.abort()


def _load_error(said: dict[str, Any]) -> Exception:
    kind: type[Exception] = _LOAD_ERRORS.get(said["type"], EngineLoadError)
    if said["type"] == ManifestMismatch.__name__:
        return LoadFailed("the model's files changed between their check and their use; try again")
    return kind(said["error"])
