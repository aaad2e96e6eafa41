"""The endpoint's side of sampling: which requests, and the process that writes them, kept running."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import time
from typing import Any, cast

import orjson

from serving.engines.engine_frames import Answered
from serving.engines.infer_job import InferJob
from serving.key_ring import Principal
from serving.loaded_version import LoadedVersion
from serving.sampling.sample_frames import Sample, SampledBody, pack_sample
from serving.sampling.sample_order import SampleOrder
from serving.side_process import RestartPause, how_it_ended, start_beside

MOST_BYTES = 16 << 20
"""Of samples that the process has not taken yet; beyond that they are lost."""
_FIRST_PAUSE = 0.5
_END_SECONDS = 10.0
_NOT_FOR_IT = ("WINNOW_ADMIN_TOKEN", "WINNOW_TLS_")
log = logging.getLogger("winnow.serving")


class SampleKeeper:
    """Hands samples to the process that writes them, and never waits for it: what it does not take in time is lost.

    Attributes:
        written, lost: samples so far.
        fault: why S3 does not take them, or there is no process; empty where all is well.
    """

    def __init__(self, order: SampleOrder, *, most_bytes: int = MOST_BYTES) -> None:
        self.order, self._most_bytes = order, most_bytes
        self.fault = ""
        self.pid: int | None = None
        self._link: _WriterLink | None = None
        self._written = self._lost = 0
        """Of processes that are gone, and here."""
        self._stopping = False

    @property
    def written(self) -> int:
        return self._written + (0 if self._link is None else self._link.written)

    @property
    def lost(self) -> int:
        return self._lost + (0 if self._link is None else self._link.lost)

    def due(self, who: Principal | None) -> bool:
        """Whether the next request is one of those that are kept; none is of whose key says so."""
        return random.random() < self.order.share and (who is None or not who.key.unsampled)

    def take(self, job: InferJob, answered: Answered, version: LoadedVersion) -> None:
        """Keep a request and its answer."""
        sample = Sample(
            time.time(),
            version.model,
            version.version,
            [spec.model_dump(mode="json") for spec in version.inputs],
            [spec.model_dump(mode="json") for spec in version.outputs],
            SampledBody(job.body, job.json_bytes, job.packing),
            SampledBody(bytes(answered.body), answered.json_bytes, answered.packing),
        )
        link = self._link
        if link is None or link.waiting + sample.bytes > self._most_bytes:
            self._lost += 1
        else:
            link.send(pack_sample(sample))

    def describe(self) -> dict[str, Any]:
        """For the admin listener."""
        return {
            "share": self.order.share,
            "days": self.order.days,
            "pid": self.pid,
            "fault": self.fault or (self._link.fault if self._link is not None else ""),
            "written": self.written,
            "lost": self.lost,
        }

    async def keep(self) -> None:
        """Keep the process running until :meth:`stop`."""
        pause = RestartPause(_FIRST_PAUSE)
        while not self._stopping:
            pause.begin()
            try:
                how = await self._run()
            except OSError as error:  # no descriptors or memory left
                how = f"no process can be started: {error.strerror}"
            if self._stopping:
                return
            self.fault = f"samples are not written: {how}"
            seconds = pause.after()
            log.error("%s; the process is started again in %g s", self.fault, seconds)
            await asyncio.sleep(seconds)

    async def stop(self) -> None:
        """Have it write what it has, and end; what takes too long is lost."""
        self._stopping = True
        link = self._link
        if link is None:
            return
        link.finish()
        done, _ = await asyncio.wait([link.ended], timeout=_END_SECONDS)
        if not done:
            link.kill()
            await link.ended
        log.info("samples: %d written, %d lost", self.written, self.lost)

    async def _run(self) -> str:
        """Start it, and how it ended."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        try:
            with theirs:
                process = await start_beside(
                    "serving.sampling.sample_writer", theirs.fileno(), str(self.order.days), without=_NOT_FOR_IT
                )
        except BaseException:
            ours.close()
            raise
        link = _WriterLink(process)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: link, ours)
            self._link, self.pid, self.fault = link, process.pid, ""
            status = await process.wait()
        finally:
            link.kill()
        await link.closed  # its last words
        self._link = self.pid = None
        self._written += link.written
        self._lost += link.sent - link.written  # those it had are gone with it
        link.ended.set_result(None)
        return f"their {how_it_ended(status)}"


class _WriterLink(asyncio.Protocol):
    """The connection to one process.

    Attributes:
        sent: samples that went to it; ``written``, ``lost``, ``fault``: what it said of them last.
        closed: done when it says no more; ``ended``: when its samples are accounted for.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        loop = asyncio.get_running_loop()
        self.sent = self.written = self.lost = 0
        self.fault = ""
        self.closed: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self._process = process
        self._transport: asyncio.Transport | None = None
        self._said = b""
        self._finished = False

    @property
    def waiting(self) -> int:
        """Bytes that it has not taken."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def send(self, parts: list[bytes]) -> None:
        self.sent += 1
        if self._transport is None or self._transport.is_closing() or self._finished:
            return  # its end is noticed in a moment, and then they are lost
        try:
            self._transport.writelines(parts)
        except (OSError, RuntimeError):  # uvloop raises the latter where it has noticed before us
            self._transport.abort()

    def finish(self) -> None:
        """No more samples follow."""
        self._finished = True
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write_eof()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self._process.returncode is None:
                self._process.kill()

    # -- asyncio's callbacks ------------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        *lines, self._said = (self._said + data).split(b"\n")
        for line in lines:
            said = orjson.loads(line)
            self.written, self.lost, self.fault = said["written"], said["lost"], said["fault"]

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)
