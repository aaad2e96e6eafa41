"""What a release needs, for tests: registered versions of a model, with recorded predictions."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mlflow import MlflowClient
from onnx_models import answer, publish

from model_registry.endpoint_client import Endpoint
from model_registry.ledger import Ledger
from model_registry.recording import record
from model_registry.registry import Registry
from model_registry.store import Store
from model_registry.variant import RuntimeSpec, Variant
from model_registry.versions import Versions
from tasks.release.ledger_protocol import ReleaseProtocol

INPUTS = {"x": np.array([[1, 2], [3, 4], [5, 6]], dtype=np.float32)}


@dataclass
class World:
    """One model with its versions; version n answers n to everything, unless told otherwise."""

    store: Store
    registry: Registry
    endpoint: Endpoint
    model: str
    folder: Path

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.store)

    def rollout(self) -> ReleaseProtocol:
        return ReleaseProtocol(self.store, self.endpoint, self.registry, self.model)

    def register(
        self,
        version: int,
        *,
        number: float | None = None,
        recorded: float | None = None,
        runtime: RuntimeSpec | None = None,
        row: bool = True,
    ) -> Variant:
        """Register a version that answers ``number`` (its own by default), and is said to have answered ``recorded``
        (the truth by default). With ``row`` MLflow shows it."""
        folder = self.folder / f"v{version}"
        number = version if number is None else number
        form = answer(folder, number).model_dump() | {"digest": "", "runtime": runtime or RuntimeSpec()}
        variant = publish(self.store, folder, Variant.model_validate(form))
        claimed = np.full((3, 2), number if recorded is None else recorded, dtype=np.float32)
        record(self.store, variant, INPUTS, claimed)
        assert Versions(self.store).add(self.model, variant.digest) == version
        if row:
            client = MlflowClient(self.registry.uri, self.registry.uri)
            if version == 1:
                client.create_registered_model(self.model)
            tags = {"winnow.digest": variant.digest, "winnow.version": str(version)}
            made = client.create_model_version(self.model, f"s3://nowhere/{version}", tags=tags, await_creation_for=0)
            assert int(made.version) == version
        return variant

    def release(self, version: int) -> None:
        self.rollout().release(version, self.digest(version))

    def digest(self, version: int) -> str:
        return Versions(self.store).digest(self.model, version)

    def answers(self) -> float | None:
        """What the traffic gets: the number of the serving version; None if nothing serves."""
        if self.endpoint.model(self.model).serving is None:
            return None
        variant = self.store.load_variant(self.digest(1))
        return float(self.endpoint.infer(self.model, None, INPUTS, variant.inputs)["y"][0, 0])

    def champion(self) -> int | None:
        entry = self.ledger.champion(self.model)
        return entry.to_version if entry else None

    def shown_champion(self) -> str | None:
        """Digest of the row that MLflow's alias points to."""
        row = self.registry.alias(self.model, "champion")
        return next((one.digest for one in self.registry.versions(self.model) if one.version == row), None)

    def loaded(self) -> list[int]:
        return [v.version for v in self.endpoint.model(self.model).versions]

    def state(self) -> tuple[int | None, float | None, int | None, list[int]]:
        """Champion by the ledger, what the traffic gets, where the alias points, what is loaded."""
        return self.champion(), self.answers(), self.registry.alias(self.model, "champion"), self.loaded()


def new_name() -> str:
    """A model of one's own on a shared MLflow server."""
    return f"m-{uuid.uuid4().hex[:8]}"
