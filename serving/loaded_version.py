"""One loaded version of a model: its engine processes, kept running; what it was asked, counted; drained at its end."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, Literal

from model_registry.variant import TensorSpec
from serving.decoding.generation_order import GenerationLimits
from serving.engines.engine_lane import Heard
from serving.engines.engine_link import EngineLink
from serving.engines.infer_job import InferJob
from serving.engines.lane_pace import LanePace
from serving.engines.nursery_link import Nursery
from serving.engines.version_engines import VersionEngines
from serving.exceptions import NotReady
from serving.limits import RequestLimits
from serving.load_errors import load_error
from serving.variant_cache import VariantCache
from serving.version_stats import VersionStats

State = Literal["ready", "restarting", "draining", "stopped"]
_DRAIN_PAUSE = 0.01
log = logging.getLogger("winnow.serving")


class LoadedVersion:
    """A version of a model that answers requests. Made by :meth:`load`.

    Attributes:
        state: ``ready`` answers; ``restarting`` has no engine process and is getting one; ``draining`` takes no new
            requests; ``stopped`` has no process any more.
        reason: why it is not ready, for people.
        inputs, outputs: tensor specs as served.
        batching: whether requests run together, and why.
        generation: how it continues text; None where it does not.
        stats: what it did.
    """

    def __init__(
        self,
        model: str,
        version: str,
        digest: str,
        cache: VariantCache,
        limits: RequestLimits,
        nursery: Nursery | None,
        *,
        spare: bool = False,
    ) -> None:
        self.model, self.version, self.digest = model, version, digest
        self.state: State = "restarting"
        self.reason = ""
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()
        self.batching: dict[str, Any] = {}
        self.generation: GenerationLimits | None = None
        self.load_seconds = 0.0
        self.stats = VersionStats()
        self._cache, self._limits, self._nursery = cache, limits, nursery
        self._spare = spare
        """Whether it has one engine only, for it has hardly anything to do."""
        self._engines: VersionEngines | None = None

    @property
    def engines(self) -> list[EngineLink]:
        """Its engine processes."""
        lanes = self._engines.lanes if self._engines is not None else ()
        return [engine for lane in lanes for engine in lane.engines if not engine.closed.done()]

    @property
    def restarts(self) -> int:
        """Engine processes that died and were replaced."""
        return 0 if self._engines is None else self._engines.lane.keeper.restarts

    @property
    def waiting(self) -> tuple[int, int]:
        """Requests that no engine has yet, and bytes of their bodies."""
        queues = [] if self._engines is None else [lane.waiting for lane in self._engines.lanes]
        return sum(map(len, queues)), sum(queue.bytes for queue in queues)

    @property
    def pace(self) -> LanePace:
        """How it fares now; large bodies are left out."""
        return LanePace() if self._engines is None else self._engines.lane.pace

    def widen(self) -> None:
        """Have as many engines as there is room for: it has something to do now."""
        if self._spare and self._engines is not None:
            self._spare = False
            self._engines.widen()

    async def load(self) -> None:
        """Fetch, verify, start an engine process and warm it up; from then on it is kept running.

        Raises:
            LoadRefused: this variant cannot be served here.
            LoadFailed: something else failed, which may pass.
        """
        began = time.perf_counter()
        try:
            _, variant = await asyncio.to_thread(self._cache.fetch, self.digest)
        except Exception as error:
            raise load_error(self._name(), error) from error
        engines = VersionEngines(
            self._start,
            self._limits,
            _Reports(self),
            name=self._name(),
            variant=variant,
            isolated=self._nursery is not None,
            spare=self._spare,
        )
        engine = await engines.lane.keeper.open()
        self._engines = engines
        self.inputs, self.outputs, self.batching = engine.inputs, engine.outputs, engine.batching
        self.generation = engine.generation
        self.load_seconds = time.perf_counter() - began
        self.state = "ready"

    def submit(self, job: InferJob, *, at_once: bool = False) -> None:
        """Take a request; it is answered by ``job.deliver``.

        Args:
            at_once: see :meth:`EngineLane.submit`.

        Raises:
            NotReady: the version is not ready; the text says why.
            Overloaded: too much is waiting already.
        """
        if job.notes is not None:
            job.notes.version = self.version
        if self.state != "ready" or self._engines is None:
            raise NotReady(f"version {self.version} of model {self.model!r} is {self.state}: {self.reason}")
        self._engines.submit(job, at_once=at_once)

    def sweep(self) -> None:
        """End what took too long; called about twice a second."""
        if self._engines is not None:
            self._engines.sweep()

    async def stop(self) -> None:
        """Take no new requests, let those in flight finish (up to the drain limit), end the engine processes."""
        self.state, self.reason = "draining", "it was taken away"
        end = time.monotonic() + self._limits.drain_seconds
        if self._engines is not None:
            while not self._engines.idle and time.monotonic() < end:
                await asyncio.sleep(_DRAIN_PAUSE)
            await self._engines.close()
        self.state = "stopped"

    async def _start(self, heard: Heard) -> EngineLink:
        try:
            folder, variant = await asyncio.to_thread(self._cache.fetch, self.digest)
            if self._nursery is None:
                from serving.engines.inline_engine import (
                    start_inline,  # brings ONNX Runtime, which a front does without
                )

                return await start_inline(folder, variant, heard, self._limits, name=(self.model, self.version))
            return await EngineLink.start(
                self._nursery,
                folder,
                variant,
                heard,
                name=(self.model, self.version),
                seconds=self._limits.load_seconds,
            )
        except Exception as error:
            raise load_error(self._name(), error) from error

    def _name(self) -> str:
        return f"version {self.version} of model {self.model!r} (digest {self.digest[:12]})"


class _Reports:
    """What the lanes say of a version."""

    def __init__(self, version: LoadedVersion) -> None:
        self._version = version
        self.answered, self.refused = version.stats.answered, version.stats.refused

    def restarting(self, why: str) -> None:
        if self._version.state in ("ready", "restarting"):
            self._version.state, self._version.reason = "restarting", why

    def restarted(self) -> None:
        if self._version.state == "restarting":
            self._version.state, self._version.reason = "ready", ""
