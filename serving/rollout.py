"""Which versions are loaded and which one has the traffic; swapping never drops a request.

Everything here runs on the endpoint's one event loop, so an assignment is a swap: a request is answered by the
version that had the traffic when its body was complete, and that version stays loaded until it is taken away.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from serving.engines.nursery_link import Nursery
from serving.exceptions import Conflict, NotFound, NotReady
from serving.limits import RequestLimits
from serving.loaded_version import LoadedVersion
from serving.variant_cache import VariantCache


@dataclass
class Model:
    """A model's versions, by version number, and the one that answers the unversioned path."""

    versions: dict[str, LoadedVersion] = field(default_factory=dict)
    serving: str | None = None
    reason: str = "no version has the traffic yet"
    """Why no version has the traffic."""


class Rollout:
    """The endpoint's models; ``isolated``: whether each version has processes of its own."""

    def __init__(self, cache: VariantCache, limits: RequestLimits, *, isolated: bool = True) -> None:
        self.models: dict[str, Model] = {}
        self.waiting_for = "the ledger has not been read yet"
        """What the endpoint waits for before it can be ready; empty when nothing."""
        self._cache, self._limits, self._nursery = cache, limits, Nursery() if isolated else None
        self._loading: dict[tuple[str, str], tuple[str, asyncio.Task[LoadedVersion]]] = {}
        self._closing = False

    def version(self, model: str, version: str | None) -> LoadedVersion:
        """The version asked for, or without one that which has the traffic.

        Raises:
            NotFound: there is no such model or version.
            NotReady: the model has no version with traffic.
        """
        found = self.models.get(model)
        if found is None:
            if self.waiting_for:
                raise NotReady(f"model {model!r} is not loaded: {self.waiting_for}")
            raise NotFound(f"there is no model {model!r}; this endpoint has {sorted(self.models)}")
        chosen = version or found.serving
        if chosen is None:
            raise NotReady(f"model {model!r} is not ready: {found.reason}")
        if chosen not in found.versions:
            raise NotFound(f"model {model!r} has no version {version!r} loaded; it has {sorted(found.versions)}")
        return found.versions[chosen]

    def versions(self) -> list[LoadedVersion]:
        """All that are loaded, by model and number."""
        return [
            model.versions[number]
            for _, model in sorted(self.models.items())
            for number in sorted(model.versions, key=int)
        ]

    def sweep(self) -> None:
        """End what took too long; called about twice a second."""
        for version in self.versions():
            version.sweep()

    def not_ready(self) -> list[str]:
        """Why the endpoint is not ready, a line per reason; empty when it is."""
        reasons = [self.waiting_for] if self.waiting_for else []
        for name, model in sorted(self.models.items()):
            if model.serving is None:
                reasons.append(f"model {name!r}: {model.reason}")
            elif (version := model.versions[model.serving]).state != "ready":
                reasons.append(f"model {name!r}: version {version.version} is {version.state}: {version.reason}")
        return reasons

    async def load(self, model: str, version: str, digest: str) -> LoadedVersion:
        """Load a version next to the others; the same one again is harmless.

        Raises:
            Conflict: that version is, or is being, loaded with another digest.
            LoadRefused, LoadFailed: see :meth:`LoadedVersion.load`; nothing has changed.
        """
        if self._closing:
            raise NotReady("the endpoint is shutting down")
        known = self.models.get(model)
        if known is not None and version in known.versions:
            loaded = known.versions[version]
            self._same_digest(model, version, loaded.digest, digest)
            if loaded.state in ("draining", "stopped"):
                raise Conflict(f"version {version} of model {model!r} is being taken away; try again in a moment")
            if loaded.state != "ready":
                raise NotReady(f"version {version} of model {model!r} is {loaded.state}: {loaded.reason}")
            return loaded
        key = (model, version)
        if key not in self._loading:
            # A task of its own: a second caller waits for the same load, and neither can cancel it by hanging up.
            self._loading[key] = (digest, asyncio.create_task(self._load(model, version, digest)))
        began_with, task = self._loading[key]
        self._same_digest(model, version, began_with, digest)
        return await asyncio.shield(task)

    async def _load(self, model: str, version: str, digest: str) -> LoadedVersion:
        try:
            loaded = LoadedVersion(model, version, digest, self._cache, self._limits, self._nursery)
            await loaded.load()
            if self._closing:
                await loaded.stop()
                raise NotReady("the endpoint is shutting down")
            self.models.setdefault(model, Model()).versions[version] = loaded
            return loaded
        finally:
            del self._loading[model, version]

    def set_traffic(self, model: str, version: str | None) -> str | None:
        """Give the model's traffic to a version (or to none); returns the one that had it.

        Raises:
            NotFound: the model or version is not loaded.
            Conflict: the version is not ready.
        """
        if model not in self.models:
            raise NotFound(f"there is no model {model!r}; load a version of it first")
        found = self.models[model]
        if version is not None:
            chosen = self.version(model, version)
            if chosen.state != "ready":
                raise Conflict(
                    f"version {version} of model {model!r} is {chosen.state} ({chosen.reason}); "
                    "it gets the traffic only when it is ready"
                )
        previous, found.serving = found.serving, version
        found.reason = "" if version is not None else "its traffic was taken away"
        return previous

    async def unload(self, model: str, version: str) -> None:
        """Drain a version and end its process.

        Raises:
            NotFound: it is not loaded.
            Conflict: it has the traffic.
        """
        loaded = self.version(model, version)
        found = self.models[model]
        if found.serving == version:
            raise Conflict(f"version {version} of model {model!r} has the traffic; give it to another version first")
        await loaded.stop()
        # The same object: while this one drained, nothing else may have taken its place.
        if found.versions.get(version) is loaded:
            del found.versions[version]
        if not found.versions and found.serving is None and self.models.get(model) is found:
            del self.models[model]

    async def close(self) -> None:
        """Drain everything and end all engine processes; loads under way are given up."""
        self._closing = True
        loading = [task for _, task in self._loading.values()]
        for task in loading:
            task.cancel()
        await asyncio.gather(*loading, return_exceptions=True)
        await asyncio.gather(*(v.stop() for v in self.versions()))
        if self._nursery is not None:
            await self._nursery.close()

    @staticmethod
    def _same_digest(model: str, version: str, has: str, wanted: str) -> None:
        if has != wanted:
            raise Conflict(
                f"version {version} of model {model!r} is loaded with digest {has[:12]}, not {wanted[:12]}; "
                "a version never changes: take it away first, or use another number"
            )
