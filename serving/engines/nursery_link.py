"""The front's side of the nursery: engines are asked for here, and how they ended is heard here."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

import orjson

from model_registry.quiet import QUIET
from serving.engines.engine_frames import LONGEST_ORDER
from serving.exceptions import LoadFailed

_START_SECONDS = 60.0
_END_SECONDS = 5.0
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
"""A process of several threads must not fork; and no engine multiplies matrices with numpy."""
_BUFFER_BYTES = 1 << 20
_MOST_NURSERIES = 3
"""That are tried for one engine."""
_LOST = "the process that starts engines died; try again"

Ended = Callable[[str], None]


class NurseryLost(LoadFailed):
    """The process that starts engines died."""


class Nursery:
    """Starts engine processes; itself started when first needed, and again if it dies."""

    def __init__(self) -> None:
        self._control: socket.socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._ready: asyncio.Future[None] | None = None
        self._numbers = 0
        self._waiting: dict[int, tuple[asyncio.Future[int], Ended]] = {}
        self._ends: dict[int, Ended] = {}
        self._starting = asyncio.Lock()
        self._closed = False

    @property
    def pid(self) -> int | None:
        return None if self._control is None or self._process is None else self._process.pid

    async def start_engine(self, order: dict[str, Any], ended: Ended) -> tuple[int, socket.socket]:
        """A new engine process: its id, and our end of the connection to it.

        Args:
            order: see :mod:`serving.engines.engine_nursery`.
            ended: called once with how it ended.

        Raises:
            LoadFailed: no process can be started now.
        """
        for _ in range(_MOST_NURSERIES - 1):
            try:
                return await self._fork(order, ended)
            except NurseryLost:  # noticed only now: another one is started
                continue
        return await self._fork(order, ended)

    async def _fork(self, order: dict[str, Any], ended: Ended) -> tuple[int, socket.socket]:
        if self._closed:
            raise LoadFailed("the endpoint is shutting down")
        async with self._starting:
            if self._control is None:
                await self._start()
        assert self._control is not None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            for end in (ours, theirs):  # as much as the system allows: large bodies go over in fewer pieces
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
                end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
            ours.setblocking(False)
            self._numbers += 1
            number = self._numbers
            forked: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            self._waiting[number] = forked, ended
            try:
                message = orjson.dumps({**order, "number": number})
                socket.send_fds(self._control, [message], [theirs.fileno()])
                async with asyncio.timeout(_START_SECONDS):
                    pid = await forked
            finally:
                self._waiting.pop(number, None)
        except BaseException as error:
            ours.close()
            if isinstance(error, TimeoutError | BlockingIOError):
                raise LoadFailed("the process that starts engines does not answer; try again") from error
            if isinstance(error, BrokenPipeError | ConnectionResetError):
                self._lost()
                raise NurseryLost(_LOST) from error
            raise
        finally:
            theirs.close()
        return pid, ours

    async def close(self) -> None:
        """End it; engines end with their own connections."""
        self._closed = True
        process = self._process
        self._lost()
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_SECONDS):
                await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "serving.engines.engine_nursery", str(theirs.fileno())),
                stdin=asyncio.subprocess.DEVNULL,
                stderr=None,  # joins the endpoint's log
                pass_fds=(theirs.fileno(),),
                env={**os.environ, **QUIET, **_ONE_THREAD},
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._control, self._ready = ours, loop.create_future()
        loop.add_reader(ours.fileno(), self._read)
        try:
            async with asyncio.timeout(_START_SECONDS):
                await self._ready
        except TimeoutError as error:
            self._process.kill()
            self._lost()
            raise LoadFailed(f"the process that starts engines took longer than {_START_SECONDS:g} s") from error

    def _read(self) -> None:
        """Everything that the nursery has said."""
        while self._control is not None:
            try:
                message = self._control.recv(LONGEST_ORDER)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if not message:
                self._lost()
                return
            self._hear(orjson.loads(message))

    def _hear(self, said: dict[str, Any]) -> None:
        if "ready" in said:
            if self._ready is not None and not self._ready.done():
                self._ready.set_result(None)
        elif "gone" in said:
            ended = self._ends.pop(said["gone"], None)
            if ended is not None:
                ended(_how(said["status"]))
        elif said["number"] in self._waiting:
            forked, ended = self._waiting[said["number"]]
            if "error" in said:
                forked.set_exception(LoadFailed(said["error"]))
            else:
                self._ends[said["pid"]] = ended
                forked.set_result(said["pid"])

    def _lost(self) -> None:
        """The nursery is gone: nobody will say how its engines end, and the next one is started when it is needed."""
        if self._control is None:
            return
        asyncio.get_running_loop().remove_reader(self._control.fileno())
        self._control.close()
        self._control = None
        self._ends.clear()
        lost = NurseryLost(_LOST)
        for future in [forked for forked, _ in self._waiting.values()] + ([self._ready] if self._ready else []):
            if not future.done():
                future.set_exception(lost)
                future.exception()  # seen, also where nobody waits any more


def _how(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
