"""The endpoint's side of the gRPC process: keeps it running, and takes its HTTP connections."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from typing import Any, Literal

import orjson

from serving.grpc_front.grpc_order import LONGEST_MESSAGE, GrpcOrder
from serving.side_process import RestartPause, how_it_ended, start_beside

_FIRST_PAUSE = 0.25
_START_SECONDS, _END_SECONDS = 60.0, 5.0
_NOT_FOR_IT = ("AWS_", "OTEL_", "WINNOW_ADMIN_TOKEN")
"""What it has no use for, and what nobody who gets into it shall find."""
log = logging.getLogger("winnow.serving")


class GrpcKeeper:
    """Starts the gRPC process, again with growing pauses whenever it ends.

    Args:
        connect: makes the protocol of an HTTP connection.

    Attributes:
        state: ``ready`` answers calls; ``starting`` does not yet.
        reason: why it is not ready, for people.
        pid: of the process, None where there is none.
        restarts: how often it was started again.
    """

    def __init__(self, order: GrpcOrder, connect: Callable[[], asyncio.Protocol]) -> None:
        self.state: Literal["starting", "ready"] = "starting"
        self.reason = "it is being started"
        self.pid: int | None = None
        self.restarts = 0
        self._order, self._connect = order, connect
        self._control: socket.socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._cause = ""
        """Why it is going to end, where that is known before it does."""
        self._stopping = False
        self._adoptions = set[asyncio.Task[Any]]()

    def describe(self) -> dict[str, Any]:
        """For the admin listener."""
        return {
            "address": self._order.address,
            "state": self.state,
            "reason": self.reason,
            "pid": self.pid,
            "restarts": self.restarts,
        }

    async def keep(self) -> None:
        """Keep it running until :meth:`stop`."""
        pause = RestartPause(_FIRST_PAUSE)
        while True:
            pause.begin()
            try:
                how = await self._run()
            except OSError as error:  # no descriptors or memory left
                how = f"no process can be started: {error.strerror}"
            if self._stopping:
                return
            self.state, self.reason, self.pid = "starting", self._cause or how, None
            seconds = pause.after()
            log.error("gRPC: %s; its process is started again in %g s", self.reason, seconds)
            await asyncio.sleep(seconds)
            self.restarts += 1

    async def stop(self, seconds: float) -> None:
        """Let calls under way end, and the process with them; at most this long."""
        self._stopping = True
        process = self._process
        if process is None or self._control is None:
            return
        with contextlib.suppress(OSError):  # it is gone already
            self._control.shutdown(socket.SHUT_WR)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds + _END_SECONDS):
                await process.wait()
        if process.returncode is None:
            process.kill()

    async def _run(self) -> str:
        """Start it, and how it ended."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self._cause = ""
        try:
            with theirs:
                self._process = process = await start_beside(
                    "serving.grpc_front.grpc_process", theirs.fileno(), without=_NOT_FOR_IT
                )
        except BaseException:
            ours.close()
            raise
        self._control, self.pid = ours, process.pid
        late = loop.call_later(_START_SECONDS, self._give_up, process)
        try:
            loop.add_reader(ours.fileno(), self._read, ours)
            with contextlib.suppress(BrokenPipeError):  # ended already, as the next line finds
                ours.send(self._order.to_message())
            status = await process.wait()
        finally:
            late.cancel()
            self._read(ours)  # its last words
            loop.remove_reader(ours.fileno())
            self._control = None
            ours.close()
            if process.returncode is None:
                process.kill()
        return f"its {how_it_ended(status)}"

    def _give_up(self, process: asyncio.subprocess.Process) -> None:
        if self.state != "ready":
            self._cause = f"its process was not ready within {_START_SECONDS:g} s"
            process.kill()

    def _read(self, control: socket.socket) -> None:
        """Everything that it has said."""
        while True:
            try:
                message, descriptors, _, _ = socket.recv_fds(control, LONGEST_MESSAGE, 1)
            except BlockingIOError:
                return
            except OSError:
                message, descriptors = b"", []
            for descriptor in descriptors:
                self._adopt(socket.socket(fileno=descriptor))
            if not message:
                asyncio.get_running_loop().remove_reader(control.fileno())
                return
            said = orjson.loads(message)
            if "error" in said:
                self._cause = said["error"]
            elif "ready" in said:
                self.state, self.reason = "ready", ""
                log.info("gRPC on %s, process %s", self._order.address, self.pid)

    def _adopt(self, connection: socket.socket) -> None:
        """Take a connection of its calls as one more of the listener's."""
        connection.setblocking(False)
        connection.set_inheritable(False)
        adoption = asyncio.create_task(asyncio.get_running_loop().connect_accepted_socket(self._connect, connection))
        self._adoptions.add(adoption)
        adoption.add_done_callback(self._adoptions.discard)
