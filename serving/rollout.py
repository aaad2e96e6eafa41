"""Which versions are loaded and which one has the traffic; swapping never drops a request.

Everything here runs on the endpoint's one event loop, so an assignment is a swap: a request is answered by the
version that had the traffic when its body was complete, and that version stays loaded until it is taken away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from model_registry.rollout_plan import RolloutPlan
from model_registry.variant_set import SetMember
from serving.engines.nursery_link import Nursery
from serving.exceptions import Conflict, NotFound, NotReady
from serving.limits import RequestLimits
from serving.loaded_version import LoadedVersion
from serving.traffic.steering import Chosen, Steering
from serving.traffic.trial import Trial
from serving.traffic.variant_choice import SetVariant
from serving.variant_cache import VariantCache
from serving.wishes import Wishes


@dataclass
class Model:
    """A model's versions, by version number, and the one that answers the unversioned path."""

    versions: dict[str, LoadedVersion] = field(default_factory=dict)
    serving: str | None = None
    reason: str = "no version has the traffic yet"
    """Why no version has the traffic; clients read it."""
    detail: str = ""
    """The same with what only whoever administers the endpoint may read; empty: there is no more to say."""
    steering: Steering = field(default_factory=Steering)


class Rollout:
    """The endpoint's models; ``isolated``: whether each version has processes of its own."""

    def __init__(self, cache: VariantCache, limits: RequestLimits, *, isolated: bool = True) -> None:
        self.models: dict[str, Model] = {}
        self.waiting_for = "the ledger has not been read yet"
        """What the endpoint waits for before it can be ready; empty when nothing. Clients read it."""
        self.waiting_detail = ""
        """As :attr:`Model.detail`."""
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

    def choose(self, model: str, version: str | None, wishes: Wishes | None, *, exact: bool = False) -> Chosen:
        """The version that answers a request.

        Args:
            version: that the request names, if it does.
            wishes: what it wants of its variant.
            exact: whether it takes no cheaper variant when there is much to do.

        Raises:
            NotFound, NotReady: as :meth:`version`.
            InvalidRequest, Overloaded: no variant fulfils the wishes, ever or now.
        """
        serving, found = self.version(model, version), self.models[model]
        if wishes is None and not found.steering.active:
            return Chosen(serving)
        return found.steering.choose(serving, found.versions, wishes, named=version is not None, exact=exact)

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
        for model in self.models.values():
            model.steering.sweep()

    def not_ready(self) -> list[str]:
        """Why the endpoint is not ready, a line per reason; empty when it is."""
        reasons = [self.waiting_for] if self.waiting_for else []
        for name, model in sorted(self.models.items()):
            if model.serving is None:
                reasons.append(f"model {name!r}: {model.reason}")
            elif (version := model.versions[model.serving]).state != "ready":
                reasons.append(f"model {name!r}: version {version.version} is {version.state}: {version.reason}")
        return reasons

    async def load(self, model: str, version: str, digest: str, *, spare: bool = False) -> LoadedVersion:
        """Load a version next to the others; the same one again is harmless.

        Args:
            spare: with one engine, until it is asked for something.

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
            self._loading[key] = (digest, asyncio.create_task(self._load(model, version, digest, spare)))
        began_with, task = self._loading[key]
        self._same_digest(model, version, began_with, digest)
        return await asyncio.shield(task)

    async def _load(self, model: str, version: str, digest: str, spare: bool) -> LoadedVersion:
        try:
            loaded = LoadedVersion(model, version, digest, self._cache, self._limits, self._nursery, spare=spare)
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
            chosen.widen()
        previous, found.serving = found.serving, version
        found.reason = "" if version is not None else "its traffic was taken away"
        steering = found.steering
        steering.set_members(steering.members, version)
        steering.routed(version, moved=version != previous)
        return previous

    def set_members(self, model: str, members: Sequence[SetMember]) -> None:
        """Serve these versions of a model as one set. None: the version with the traffic alone.

        Raises:
            NotFound: one is not loaded.
            Conflict: none of them has the traffic, or one is another variant than is loaded.
        """
        found, made = self.models.get(model), list[SetVariant]()
        if found is None:
            raise NotFound(f"there is no model {model!r}; load a version of it first")
        for member in members:
            loaded = self.version(model, str(member.version))
            self._same_digest(model, loaded.version, loaded.digest, member.digest)
            higher = member.better == "higher"
            made.append(SetVariant(loaded, member.name, member.metric, higher, member.value, member.p50_ms))
        if made and found.serving not in [member.loaded.version for member in made]:
            raise Conflict(f"no version of the set has the traffic of model {model!r}, version {found.serving} has it")
        found.steering.set_members(made, found.serving)

    def begin_trial(self, model: str, version: str, plan: RolloutPlan) -> Trial:
        """Try a loaded version beside the one with the traffic; the same again renews it.

        Raises:
            NotFound, NotReady: the version is not loaded, or nothing has the traffic.
            Conflict: another one is on trial, it has the traffic already, or it is not ready.
        """
        serving, candidate = self.version(model, None), self.version(model, version)
        steering = self.models[model].steering
        trial = steering.trial
        if trial is not None and trial.new == version and trial.plan == plan and not trial.over:
            trial.act("renew")
            return trial
        if trial is not None and not trial.over and trial.new != version:
            raise Conflict(f"version {trial.new} of model {model!r} is being rolled out; end that first")
        if candidate is serving:
            raise Conflict(f"version {version} of model {model!r} has the traffic already")
        if candidate.state != "ready":
            raise Conflict(f"version {version} of model {model!r} is {candidate.state}: {candidate.reason}")
        steering.trial = Trial(plan, serving.version, version)
        return steering.trial

    def trial(self, model: str) -> Trial:
        """The trial of a model, over or not. Raises NotFound for none."""
        found = self.models.get(model)
        if found is None or found.steering.trial is None:
            raise NotFound(f"no version of model {model!r} is being rolled out")
        return found.steering.trial

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
        found.steering.without(version)
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
