"""One loaded version of a model: its engine process, kept running; requests counted, so that it can be drained."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Literal

from pydantic import ValidationError

from model_registry.cpu_class import CpuClassMismatch
from model_registry.manifest import ManifestMismatch
from model_registry.store import CorruptObject, ObjectMissing, StoreError
from model_registry.variant import NewerRecord, TensorSpec
from serving.engine_client import EngineClient
from serving.exceptions import (
    EngineLoadError,
    EngineRunError,
    LoadFailed,
    LoadRefused,
    NotReady,
    ServingError,
)
from serving.limits import RequestLimits
from serving.onnx_safety import UnsafeModel
from serving.protocol import InferRequest
from serving.tensors import Array
from serving.variant_cache import CacheUnusable, VariantCache

State = Literal["ready", "restarting", "draining", "stopped"]
_HEALTHY_SECONDS = 60.0
_LONGEST_PAUSE = 30.0
log = logging.getLogger("winnow.serving")


class LoadedVersion:
    """A version of a model that answers requests. Made by :meth:`load`.

    Attributes:
        state: ``ready`` answers; ``restarting`` lost its engine process and is getting another; ``draining`` takes no
            new requests; ``stopped`` has no process any more.
        reason: why it is not ready, for people.
        inputs, outputs: tensor specs as served.
    """

    def __init__(self, model: str, version: str, digest: str, cache: VariantCache, limits: RequestLimits) -> None:
        self.model, self.version, self.digest = model, version, digest
        self.state: State = "restarting"
        self.reason = ""
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()
        self.load_seconds = 0.0
        self.restarts = 0
        self._cache, self._limits = cache, limits
        self._engine: EngineClient | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def pid(self) -> int | None:
        """The engine process, where there is one."""
        return None if self._engine is None or self._engine.gone.done() else self._engine.pid

    async def load(self) -> None:
        """Fetch, verify, start the engine process and warm it up; from then on it is kept running.

        Raises:
            LoadRefused: this variant cannot be served here.
            LoadFailed: something else failed, which may pass.
        """
        began = time.perf_counter()
        self._engine = await self._start()
        self.inputs, self.outputs = self._engine.inputs, self._engine.outputs
        self.load_seconds = time.perf_counter() - began
        self.state = "ready"
        self._keeper = asyncio.create_task(self._keep_running(), name=f"keep {self.model}/{self.version}")

    async def infer(self, request: InferRequest) -> dict[str, Array]:
        """Answer one request.

        Raises:
            NotReady: the version is not ready; the text says why.
            EngineCrashed, InferenceTimedOut, Overloaded: see :class:`EngineClient`.
            ServingError: the model failed on this input.
        """
        if self.state != "ready" or self._engine is None:
            raise NotReady(f"version {self.version} of model {self.model!r} is {self.state}: {self.reason}")
        self._in_flight += 1
        self._idle.clear()
        try:
            return await self._engine.infer(request.inputs, request.outputs, seconds=self._limits.infer_seconds)
        except EngineRunError as error:
            log.error("model %s version %s failed on a request: %s", self.model, self.version, error)
            raise ServingError(
                f"model {self.model!r} failed on this input though its shape is right; the endpoint's log says why"
            ) from error
        finally:
            self._in_flight -= 1
            if self._in_flight == 0:
                self._idle.set()

    async def stop(self) -> None:
        """Take no new requests, let those in flight finish (up to the drain limit), end the engine process."""
        self.state, self.reason = "draining", "it was taken away"
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.drain_seconds):
                await self._idle.wait()
        if self._engine is not None:
            await self._engine.stop()
        self.state = "stopped"

    async def _start(self) -> EngineClient:
        try:
            folder, variant = await asyncio.to_thread(self._cache.fetch, self.digest)
            return await EngineClient.start(folder, variant, seconds=self._limits.load_seconds)
        except (
            ObjectMissing,
            CorruptObject,
            UnsafeModel,
            CpuClassMismatch,
            EngineLoadError,
            ManifestMismatch,
            NewerRecord,
        ) as error:
            raise LoadRefused(f"{self._name()} cannot be served: {error}") from error
        except ValidationError as error:
            raise LoadRefused(
                f"{self._name()} cannot be served: the store's manifest does not hash to its name; register it again"
            ) from error
        except (StoreError, CacheUnusable, LoadFailed) as error:
            raise LoadFailed(f"{self._name()} could not be loaded: {error}") from error
        except Exception as error:  # no descriptors, memory or threads left, or a fault of ours: it may pass
            log.exception("%s could not be loaded", self._name())
            why = getattr(error, "strerror", None) or type(error).__name__  # clients read it: no paths
            raise LoadFailed(f"{self._name()} could not be loaded: {why}; the endpoint's log says more") from error

    def _name(self) -> str:
        return f"version {self.version} of model {self.model!r} (digest {self.digest[:12]})"

    async def _keep_running(self) -> None:
        """Start the engine process again whenever it dies; at once the first time, then ever more slowly."""
        pause = 0.0
        while self._engine is not None:
            healthy_since = time.monotonic()
            died = await asyncio.shield(self._engine.gone)
            if time.monotonic() - healthy_since > _HEALTHY_SECONDS:
                pause = 0.0
            self.state, self.reason = "restarting", f"its engine process died ({died}) and is started again"
            log.error("model %s version %s: engine process died (%s)", self.model, self.version, died)
            while True:
                await asyncio.sleep(pause)
                pause = min(max(2 * pause, 0.25), _LONGEST_PAUSE)
                try:
                    self._engine = await self._start()
                except ServingError as error:
                    self.reason = f"its engine process died ({died}); starting it again failed: {error}"
                    log.error("%s", self.reason)
                else:
                    break
            self.restarts += 1
            self.state, self.reason = "ready", ""
            log.warning("model %s version %s: engine process %s is ready", self.model, self.version, self._engine.pid)
