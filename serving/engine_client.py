"""The endpoint's side of one engine process: start it, send it requests, notice its death."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from model_registry.cpu_class import CpuClassMismatch
from model_registry.manifest import ManifestMismatch
from model_registry.quiet import QUIET
from model_registry.variant import TensorSpec, Variant
from serving.engine_frames import Decoder, Frame, MalformedFrame, encode
from serving.exceptions import EngineCrashed, EngineLoadError, EngineRunError, InferenceTimedOut, LoadFailed, Overloaded
from serving.onnx_safety import UnsafeModel
from serving.tensors import Array, MalformedTensor

MAX_PENDING = 256
MAX_BUFFERED = 256 << 20
_END_SECONDS = 5.0
_LOAD_ERRORS = {kind.__name__: kind for kind in (CpuClassMismatch, UnsafeModel)}


class EngineClient(asyncio.SubprocessProtocol):
    """One running engine process.

    Attributes:
        pid: of the process.
        inputs, outputs: tensor specs as the engine serves them (known once loaded).
        load_seconds: what loading and warming up took inside the process.
        gone: a future that ends with the reason once the process is dead or unusable.
    """

    def __init__(self) -> None:
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()
        self.load_seconds = 0.0
        loop = asyncio.get_running_loop()
        self.gone: asyncio.Future[str] = loop.create_future()
        self._loaded: asyncio.Future[Frame] = loop.create_future()
        self._pending: dict[int, asyncio.Future[Frame]] = {}
        self._number = 0
        self._decoder = Decoder()
        self._heard = time.monotonic()
        self._stopping = False
        self._transport: asyncio.SubprocessTransport | None = None

    @classmethod
    async def start(cls, folder: Path, variant: Variant, *, seconds: float = 120.0) -> EngineClient:
        """Start a process, load and warm the variant in it.

        Args:
            folder: holds the variant's files.
            seconds: how long that may take.

        Raises:
            CpuClassMismatch, UnsafeModel, EngineLoadError: the variant cannot be run here.
            LoadFailed: it took longer than ``seconds`` or the process died; the process is ended.
        """
        loop = asyncio.get_running_loop()
        _, client = await loop.subprocess_exec(
            cls,
            sys.executable,
            *("-m", "serving.engine_process"),
            stderr=None,  # joins the endpoint's log
            env={**os.environ, **QUIET},
        )
        try:
            async with asyncio.timeout(seconds):
                manifest = variant.model_dump(mode="json", by_alias=True)
                client._send(encode({"folder": str(folder.absolute()), "variant": manifest}))
                answer = (await client._loaded).header
            if "error" in answer:
                raise _load_error(answer)
        except TimeoutError as error:
            await client.stop()
            raise LoadFailed(
                f"loading and warming up took longer than {seconds:g} s; the engine process was ended"
            ) from error
        except EngineCrashed as error:
            await client.stop()
            raise LoadFailed(f"the engine process died while it loaded the model: {error}") from error
        except BaseException:
            await client.stop()
            raise
        client.inputs = tuple(TensorSpec.model_validate(spec) for spec in answer["inputs"])
        client.outputs = tuple(TensorSpec.model_validate(spec) for spec in answer["outputs"])
        client.load_seconds = answer["seconds"]
        return client

    @property
    def pid(self) -> int:
        return 0 if self._transport is None else self._transport.get_pid()

    async def infer(
        self, inputs: Mapping[str, Array], outputs: Sequence[str], *, seconds: float = 60.0
    ) -> dict[str, Array]:
        """Run once in the engine.

        Raises:
            EngineCrashed: the process is, or went, away.
            EngineRunError: the model failed on this input.
            InferenceTimedOut: no answer in time. An engine that answered nobody all that time is killed.
            Overloaded: too much is waiting already.
        """
        if self.gone.done():
            raise EngineCrashed(f"the model's engine process is gone ({self.gone.result()}); it is being restarted")
        if len(self._pending) >= MAX_PENDING or self._buffered() > MAX_BUFFERED:
            raise Overloaded(f"{len(self._pending)} requests are waiting for this model; try again later")
        self._number += 1
        number = self._number
        answered: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._pending[number] = answered
        sent = time.monotonic()
        try:
            self._send(encode({"id": number, "outputs": outputs}, inputs))
            async with asyncio.timeout(seconds):
                frame = await answered
        except TimeoutError as error:
            if self._heard < sent:
                self._kill()
            raise InferenceTimedOut(f"the model did not answer within {seconds:g} s") from error
        finally:
            self._pending.pop(number, None)
        if "error" in frame.header:
            raise EngineRunError(frame.header["error"])
        return frame.tensors

    async def stop(self) -> None:
        """End the process: stdin is closed, and what does not end by itself is killed."""
        if self._transport is None or self.gone.done():
            return
        self._stopping = True
        cast(asyncio.WriteTransport, self._transport.get_pipe_transport(0)).close()
        done, _ = await asyncio.wait([self.gone], timeout=_END_SECONDS)
        if not done:
            self._kill()
            await self.gone

    # -- asyncio's callbacks ------------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.SubprocessTransport, transport)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self._heard = time.monotonic()
        try:
            for frame in self._decoder.feed(data):
                number = frame.header.get("id")
                waiting = self._loaded if number is None else self._pending.get(number)
                if waiting is not None and not waiting.done():
                    waiting.set_result(frame)
        except (MalformedFrame, MalformedTensor) as error:
            print(f"engine {self.pid}: {error}", file=sys.stderr)
            self._kill()

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if not self._stopping:
            self._kill()  # an engine that cannot be read or written is of no use, alive or not

    def process_exited(self) -> None:
        assert self._transport is not None
        code = self._transport.get_returncode() or 0
        reason = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self._transport.close()
        if not self.gone.done():
            self.gone.set_result(reason)
        for waiting in (self._loaded, *self._pending.values()):
            if not waiting.done():
                waiting.set_exception(
                    EngineCrashed(f"the model's engine process died ({reason}) before it answered; try again")
                )
        if not self._loaded.cancelled():
            self._loaded.exception()  # seen: nobody may be waiting for it any more

    # -- plumbing -----------------------------------------------------------------------------------------------
    def _send(self, data: bytes) -> None:
        assert self._transport is not None
        cast(asyncio.WriteTransport, self._transport.get_pipe_transport(0)).write(data)

    def _buffered(self) -> int:
        assert self._transport is not None
        return cast(asyncio.WriteTransport, self._transport.get_pipe_transport(0)).get_write_buffer_size()

    def _kill(self) -> None:
        # Not transport.kill(): it polls, which may reap the process behind the event loop's back.
        if self._transport is not None and self._transport.get_returncode() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


def _load_error(answer: dict[str, Any]) -> Exception:
    kind: type[Exception] = _LOAD_ERRORS.get(answer["type"], EngineLoadError)
    if answer["type"] == ManifestMismatch.__name__:
        return LoadFailed("the model's files changed between their check and their use; try again")
    return kind(answer["error"])
