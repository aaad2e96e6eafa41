"""Keeps acceptors running on the front's listening socket."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from serving.acceptors.accepted_connections import AcceptorLink
from serving.side_process import RestartPause, how_it_ended, start_beside

_FIRST_PAUSE = 0.25
_START_SECONDS, _END_SECONDS = 60.0, 5.0
_NOT_FOR_IT = ("AWS_", "OTEL_", "WINNOW_ADMIN_TOKEN")
"""What it has no use for, and what nobody who gets into it shall find."""
log = logging.getLogger("winnow.serving")


class AcceptorKeeper:
    """One that ends is started again, with growing pauses; clients wait in the socket's queue meanwhile.

    Args:
        count: of processes.
        listening: that they share. ``files``: certificate, key and authorities of TLS, as far as there are such.
        connect: makes the protocol of a client's connection.
    """

    def __init__(
        self, count: int, listening: socket.socket, files: Sequence[Path], connect: Callable[[], asyncio.Protocol]
    ) -> None:
        self._listening, self._files, self._connect = listening, [str(file) for file in files], connect
        self._slots = [_Slot() for _ in range(count)]
        self._stopping = False

    @property
    def pids(self) -> list[int]:
        return [slot.process.pid for slot in self._slots if slot.process is not None]

    def describe(self) -> list[dict[str, Any]]:
        """For the admin listener."""
        return [slot.describe() for slot in self._slots]

    async def keep(self) -> None:
        """Keep them running until :meth:`close`."""
        await asyncio.gather(*(self._keep(slot) for slot in self._slots))

    def stop(self) -> None:
        """Take no more connections."""
        self._stopping = True
        for slot in self._slots:
            if slot.link is not None:
                slot.link.stop()

    async def close(self) -> None:
        """End them; connections that are left are closed once all is sent."""
        self._stopping = True
        ending = [slot.process for slot in self._slots if slot.process is not None]
        for slot in self._slots:
            if slot.link is not None:
                slot.link.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_SECONDS):
                await asyncio.gather(*(process.wait() for process in ending))
        for process in ending:
            if process.returncode is None:
                process.kill()

    async def _keep(self, slot: _Slot) -> None:
        pause = RestartPause(_FIRST_PAUSE)
        while not self._stopping:
            pause.begin()
            try:
                how = await self._run(slot)
            except OSError as error:  # no descriptors or memory left
                how = f"no process can be started: {error.strerror}"
            if self._stopping:
                return
            seconds = pause.after()
            slot.fault = how
            log.error("an acceptor's %s; it is started again in %g s", how, seconds)
            await asyncio.sleep(seconds)
            slot.restarts += 1

    async def _run(self, slot: _Slot) -> str:
        """Start it, and how it ended."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with contextlib.ExitStack() as undone:
            undone.callback(ours.close)
            with theirs:
                slot.process = process = await start_beside(
                    "serving.acceptors.acceptor_process", theirs.fileno(), *self._files, without=_NOT_FOR_IT
                )
            with contextlib.suppress(BrokenPipeError):  # ended already, as is found below
                socket.send_fds(ours, [b"\x00"], [self._listening.fileno()])
            ours.setblocking(False)
            undone.pop_all()  # from now on it is the transport's
        _, slot.link = await loop.connect_accepted_socket(lambda: AcceptorLink(self._connect), ours)
        slot.link.ready.add_done_callback(slot.began)
        late = loop.call_later(_START_SECONDS, slot.give_up)
        try:
            status = await process.wait()
        finally:
            late.cancel()
            slot.link.close()
            slot.process = slot.link = None
            if process.returncode is None:
                process.kill()
        return how_it_ended(status)


class _Slot:
    """A place for one of them."""

    def __init__(self) -> None:
        self.process: asyncio.subprocess.Process | None = None
        self.link: AcceptorLink | None = None
        self.restarts = 0
        self.fault = "it is being started"

    def began(self, ready: asyncio.Future[None]) -> None:
        if not ready.cancelled():
            self.fault = ""

    def give_up(self) -> None:
        if self.fault and self.process is not None:
            self.process.kill()

    def describe(self) -> dict[str, Any]:
        return {
            "pid": None if self.process is None else self.process.pid,
            "state": "starting" if self.fault else "ready",
            "reason": self.fault,
            "restarts": self.restarts,
            "connections": 0 if self.link is None else self.link.connections,
        }
