"""One call of a stage: everything that determines its result, and what it is called."""

from __future__ import annotations

import importlib.metadata
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pydantic import BaseModel

from model_registry.cpu_class import cpu_class, sums_saturate
from model_registry.manifest import canonical_json, hash_bytes
from model_registry.variant import Variant
from tasks.running.source_hash import closure_hash, closure_libraries
from tasks.running.splits import DataRef
from tasks.running.stage import Job, Parallel, Stage


@dataclass(frozen=True)
class StageCall:
    """A stage and what it is asked to do.

    Args:
        stage: what to run.
        job: the run it belongs to.
        spec: the stage's own part of the spec; part of the key.
        data: checked data; its fingerprint is part of the key.
        inputs: variants by role; their digests are part of the key.
        extra: JSON passed on to the child; part of the key.
        label: what it works on, where the stage runs several times; not part of the key.
    """

    stage: Stage
    job: Job
    spec: BaseModel
    data: DataRef | None = None
    inputs: Mapping[str, Variant] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""

    @property
    def name(self) -> str:
        """The stage, with its label if it has one: ``export:student``."""
        return f"{self.stage.name}:{self.label}" if self.label else self.stage.name

    @property
    def file_stem(self) -> str:
        """The name as part of a file's name."""
        return self.name.replace(":", "-")

    @cached_property
    def ingredients(self) -> dict[str, Any]:
        """Everything that determines the result, as JSON; its hash is the key."""
        stage, job = self.stage, self.job
        parts: dict[str, Any] = {
            "stage": stage.name,
            "spec": self.spec.model_dump(mode="json"),
            "inputs": {role: variant.digest for role, variant in self.inputs.items()},
            "data": self.data.fingerprint if self.data else None,
            "extra": dict(self.extra),
            "source": closure_hash(stage.entry.partition(":")[0]),
            "libraries": {name: importlib.metadata.version(name) for name in stage.libraries},
        }
        if stage.seed_matters:
            parts["seed"] = job.seed
        if stage.device_matters:
            parts["device"] = job.device
        if stage.workload_matters:
            parts["workload"] = {
                "path": job.workload.path,
                "arguments": job.workload.arguments,
                "source": self.workload_hash,
                "libraries": closure_libraries(job.workload.path.partition(":")[0], job.workload.folder),
            }
            if job.workload.task is not None:  # absent in the keys of before
                parts["workload"]["task"] = job.workload.task
        if stage.trains and job.shards > 1:
            parts["shards"] = job.shards  # and not by how many processes they are shared
        if stage.trains and job.parallel is not None and job.engine is not None:
            parts["parallel"] = {"engine": job.engine, "processes": job.parallel.processes}
        if stage.cpu_class_matters:
            parts["cpu_class"] = cpu_class()
            parts["sums_saturate"] = sums_saturate(cpu_class())  # decided there, outside the sources that are hashed
        if stage.machine_matters:
            here = {"host": socket.gethostname(), "cores": os.cpu_count()}
            parts["machine"] = {"cpu_class": cpu_class()} | ({"name": job.measure_on} if job.measure_on else here)
        canonical: dict[str, Any] = json.loads(canonical_json(parts))  # tuples to lists, as they will be read back
        return canonical

    @cached_property
    def key(self) -> str:
        """Equal for equal results: sha256 of the ingredients."""
        return hash_bytes(canonical_json(self.ingredients))

    @property
    def shared(self) -> Parallel | None:
        """How its trainings are shared out among processes, if they are."""
        trains = self.stage.trains and getattr(self.spec, "epochs", 0) > 0
        return self.job.parallel if trains else None

    @cached_property
    def workload_hash(self) -> str:
        """Hash of the workload's code and of what it imports."""
        return closure_hash(self.job.workload.path.partition(":")[0], self.job.workload.folder)

    def request(self, workdir: str) -> dict[str, Any]:
        """What the child is sent, as JSON; see :class:`tasks.running.child.Child`."""
        return {
            "entry": self.stage.entry,
            "job": self.job.model_dump(mode="json"),
            "spec": self.spec.model_dump(mode="json"),
            "data": self.data.model_dump(mode="json") if self.data else None,
            "inputs": {k: v.model_dump(mode="json", by_alias=True) for k, v in self.inputs.items()},
            "extra": dict(self.extra),
            "key": self.key,
            "workdir": workdir,
        }

    def difference(self, latest: bytes | None) -> str:
        """What differs from the ingredients of the last result of this stage of this model, as stored."""
        try:
            old, new = _flat(json.loads(latest or b"null")), _flat(self.ingredients)
        except ValueError:  # damaged: it is for people only, and written again with this result
            latest = None
        if latest is None:
            return "first time"
        changes = [
            f"{path} {old.get(path, 'nothing')} -> {new.get(path, 'nothing')}"
            for path in sorted(old.keys() | new.keys())
            if old.get(path) != new.get(path)
        ]
        return "changed: " + ", ".join(changes) if changes else "its stored result is gone"


def _flat(value: Any, path: str = "") -> dict[str, str]:
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in _flat(item, f"{path}.{key}" if path else key).items()}
    text = str(value)
    return {path: text[:12] if len(text) == 64 else text}
