"""What MLflow shows and nobody needs any more: old runs, and the models that they alone logged.

Kept, whatever their age: runs that registered a version, runs and models that a row of the registry was made from,
models that another run names as its own, and runs that are under way. Everything goes to MLflow's trash, which
``mlflow gc`` empties.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from typing import Any

from model_registry.mlflow_rest import MlflowServer, RegistryError, by_key
from model_registry.variant import Frozen

_PAGE = 1000
_MOST_VERSIONS = 10_000
_DAY_MS = 86_400_000.0
_ENDED = {"FINISHED", "FAILED", "KILLED"}


class MlflowGarbage(Frozen):
    """Ids of what may go."""

    runs: tuple[str, ...]
    """A pipeline run's row and those of its variants."""
    models: tuple[str, ...]


def find_mlflow_garbage(uri: str, *, kept: Collection[str], days: float, now: float) -> MlflowGarbage:
    """Everything of Winnow's that may go to the trash.

    Args:
        kept: ids of pipeline runs that stay.
        days: what ended later stays.
        now: seconds since the epoch.

    Raises:
        RegistryError: MLflow does not answer, or refuses.
    """
    server = MlflowServer(uri.rstrip("/"))
    experiments = server.every("experiments/search", "experiments", max_results=_PAGE)
    ids = [experiment["experiment_id"] for experiment in experiments]
    if not ids:
        return MlflowGarbage(runs=(), models=())
    runs = server.every("runs/search", "runs", experiment_ids=ids, max_results=_PAGE)
    versions = server.get("model-versions/search", max_results=_MOST_VERSIONS).get("model_versions", [])
    sources = {version.get("run_id", "") for version in versions}
    families: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        if run_id := by_key(run["data"].get("tags", [])).get("winnow.run_id"):
            families.setdefault(run_id, []).append(run)
    oldest = now * 1000 - days * _DAY_MS
    doomed = {
        member["info"]["run_id"]
        for run_id, family in families.items()
        if run_id not in kept
        and all(_ended_before(member, oldest) for member in family)
        and sources.isdisjoint(member["info"]["run_id"] for member in family)
        for member in family
    }
    needed = {version.get("source", "").removeprefix("models:/") for version in versions} | {
        output["model_id"]
        for run in runs
        if run["info"]["run_id"] not in doomed
        for output in run.get("outputs", {}).get("model_outputs", [])
    }
    models = server.every("logged-models/search", "models", experiment_ids=ids)
    unneeded = [
        model["info"]["model_id"]
        for model in models
        if model["info"].get("source_run_id") in doomed and model["info"]["model_id"] not in needed
    ]
    return MlflowGarbage(runs=tuple(sorted(doomed)), models=tuple(unneeded))


def remove_mlflow_garbage(uri: str, garbage: MlflowGarbage) -> None:
    """Put it into MLflow's trash; stopped half-way, the rest is found again."""
    server = MlflowServer(uri.rstrip("/"))
    for model_id in garbage.models:
        with _gone_is_well():
            server.send("DELETE", f"logged-models/{model_id}", {})
    for run_id in garbage.runs:
        with _gone_is_well():
            server.post("runs/delete", run_id=run_id)


@contextlib.contextmanager
def _gone_is_well() -> Any:
    try:
        yield
    except RegistryError as error:
        if error.code != "RESOURCE_DOES_NOT_EXIST":
            raise


def _ended_before(run: dict[str, Any], oldest_ms: float) -> bool:
    info = run["info"]
    return info["status"] in _ENDED and int(info.get("end_time") or info["start_time"]) <= oldest_ms
