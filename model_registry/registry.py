"""The MLflow registry: runs to compare, models, versions, aliases. The only module that says what MLflow holds.

MLflow is a view: what a stage made is in the store, who is champion is in the ledger. Everything here is
get-or-create, so that a step that is tried again leaves one run and one version.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_registry import run_page
from model_registry.mlflow_folder import ONNX_FILE, files_around
from model_registry.mlflow_rest import ANSWER_SECONDS, MlflowServer, RegistryError, by_key, pairs
from model_registry.owner import Owner
from model_registry.run_page import Dataset, Status, TrackedRun, VariantRun
from model_registry.variant import Frozen, Variant

if TYPE_CHECKING:
    from numpy.typing import NDArray

Run = dict[str, Any]
"""A run as MLflow's answers hold it: info, data, inputs."""
CHAMPION, CHALLENGER = "champion", "challenger"
_ENDED = {"failed": "FAILED", "interrupted": "KILLED", "crashed": "KILLED"}  # any other status ends FINISHED
_BATCH = 900  # metrics a request; the server takes 1000
_MOST_VERSIONS = 10_000


class ModelVersion(Frozen):
    """A row of MLflow's registry; ``digest`` is its tag ``winnow.digest``, empty for one that Winnow did not make."""

    model: str
    version: int
    """MLflow's number, which it gives again once it was lost."""
    digest: str
    run_id: str
    number: int | None = None
    """The version that it shows, tag ``winnow.version``: mostly the same. None on rows that came before the tag."""


@dataclass(frozen=True)
class AlreadyThere:
    """What MLflow held of a run's variants before it was told of them, by digest."""

    children: Mapping[str, Run]
    """Child runs: of an earlier attempt at the same run."""
    models: Mapping[str, str]
    """Ids of models that are whole, of any run of the same experiment."""


class Registry:
    """One MLflow server. Safe to share between threads."""

    def __init__(self, tracking_uri: str, seconds: float = ANSWER_SECONDS) -> None:
        self.uri = tracking_uri.rstrip("/")
        self._server = MlflowServer(self.uri, seconds)

    @classmethod
    def from_environment(cls, seconds: float = ANSWER_SECONDS) -> Registry:
        """The server of MLFLOW_TRACKING_URI; ``seconds`` is how long one answer may take.

        Raises:
            RegistryError: the variable is not set.
        """
        uri = os.environ.get("MLFLOW_TRACKING_URI", "")
        if not uri:
            raise RegistryError("MLFLOW_TRACKING_URI is not set; start the stack with `winnow up`")
        return cls(uri, seconds)

    # -- runs ---------------------------------------------------------------------------------------------------
    def open_run(self, model: str, run_id: str, tags: Mapping[str, str] | None = None) -> TrackedRun:
        """The parent run of a pipeline run, created as RUNNING where it is not there yet."""
        experiment = self._experiment(model)
        run = self._find_run(experiment, f"tags.`winnow.run_id` = '{run_id}' and tags.`winnow.kind` = 'run'")
        if run is None:
            ours = {
                "winnow.kind": "run",
                "winnow.run_id": run_id,
                "winnow.status": "running",
                "winnow.owner": Owner.current().model_dump_json(),
                "mlflow.source.name": "winnow",
                "mlflow.source.type": "JOB",
            }
            run = self._create_run(experiment, run_id, {**ours, **(tags or {})}, _now())
        return TrackedRun(
            uri=self.uri,
            model=model,
            run_id=run_id,
            experiment=experiment,
            mlflow_id=run["info"]["run_id"],
            started_ms=int(run["info"]["start_time"]),
        )

    def already_there(self, run: TrackedRun, rows: Iterable[VariantRun]) -> AlreadyThere:
        """What :meth:`log_variant` need not write again, for all the run's variants at once."""
        children = self._runs(run.experiment, f"tags.`mlflow.parentRunId` = '{run.mlflow_id}'")
        return AlreadyThere(
            children={_tags(child)["winnow.digest"]: child for child in children},
            models=self._whole_models(run.experiment, [row.variant.digest for row in rows]),
        )

    def log_variant(
        self,
        run: TrackedRun,
        row: VariantRun,
        *,
        dataset: Dataset,
        there: AlreadyThere,
        history: bytes = b"",
        onnx_file: Callable[[], Path] | None = None,
        example: Mapping[str, NDArray[Any]] | None = None,
        tags: Mapping[str, str] | None = None,
        position: int = 0,
    ) -> str:
        """Write one variant as a finished child run; returns its id.

        Args:
            there: of :meth:`already_there`.
            onnx_file: gets the variant's file; where given, the run has its model: the one that an earlier run of the
                same experiment logged, since a digest names the same bytes for ever, or a new one.
            position: its place in the chain: MLflow lists the newest run first, so that later ones start earlier.
        """
        digest = row.variant.digest
        child = there.children.get(digest)
        if child is None:
            ours = run_page.tags(row, run.run_id) | {
                "mlflow.parentRunId": run.mlflow_id,
                "mlflow.source.name": f"winnow {row.variant.stage}",
                "mlflow.source.type": "JOB",
            }
            both = {**(tags or {}), **ours}
            child = self._create_run(run.experiment, row.variant.name, both, run.started_ms - 1 - position)
        child_id: str = child["info"]["run_id"]
        own = None  # its numbers belong to the page of the model that it logged, not to that of an earlier run's
        model_tag = {}
        if onnx_file is not None and "winnow.model_id" not in _tags(child):
            model_id = there.models.get(digest)
            if model_id is None:
                model_id = own = self._log_model(run.experiment, child_id, row, onnx_file(), example)
            self._server.post("runs/outputs", run_id=child_id, models=[{"model_id": model_id, "step": 0}])
            model_tag = {"winnow.model_id": model_id}
        self._log_inputs(child_id, dataset, row.measurement.split if row.measurement else "train")
        self._log_numbers(child, row, history, dataset, own, model_tag)
        self._end(child_id, "FINISHED")
        return child_id

    def log_data(self, run: TrackedRun, dataset: Dataset) -> None:
        """Give the parent run its data; before its variants, since MLflow makes a dataset twice that two name first."""
        self._log_inputs(run.mlflow_id, dataset, "train")

    def describe_run(
        self, run: TrackedRun, rows: Sequence[VariantRun], *, dataset: Dataset, note: str, tags: Mapping[str, str]
    ) -> None:
        """Give the parent run its description and the numbers of the chosen variant, and the experiment a view that
        compares variants."""
        tags = {**tags, "mlflow.note.content": note}
        chosen = next((row for row in rows if row.chosen), None)
        if chosen is not None:
            parent = {"info": {"run_id": run.mlflow_id, "start_time": run.started_ms}}
            self._log_numbers(parent, chosen, b"", dataset, None, tags)
        else:
            self._tag(run.mlflow_id, tags)
        measured = next((row.measurement for row in rows if row.measurement is not None), None)
        if measured is not None:
            saved = run_page.view(measured.metric.name, run.started_ms)
            self._server.post(
                "experiments/set-experiment-tag", experiment_id=run.experiment, key=run_page.VIEW_TAG, value=saved
            )

    def log_folder(self, run: TrackedRun, folder: Path) -> None:
        """Put everything below the folder among the parent run's artifacts, where MLflow's UI shows it."""
        parent = self._server.get("runs/get", run_id=run.mlflow_id)["run"]
        self._upload(
            parent["info"]["artifact_uri"],
            {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()},
        )

    def end_run(self, run: TrackedRun, status: Status, tags: Mapping[str, str] | None = None) -> None:
        """End the parent run: refused, registered and released runs are FINISHED, the others FAILED or KILLED."""
        self._tag(run.mlflow_id, {**(tags or {}), "winnow.status": status})
        self._end(run.mlflow_id, _ENDED.get(status, "FINISHED"))

    def end_dead_runs(self, model: str, became: Callable[[str], Status | None] = lambda _: None) -> list[str]:
        """End the RUNNING runs of this machine whose process is gone, as what ``became`` says of their run ids, or as
        crashed; returns those ids."""
        ended = []
        where = "attributes.status = 'RUNNING' and tags.`winnow.kind` = 'run'"
        for run in self._runs(self._experiment(model), where):
            mlflow_id, tags = run["info"]["run_id"], _tags(run)
            owner = tags.get("winnow.owner")
            if owner is None or not Owner.model_validate_json(owner).provably_dead():
                continue
            children = f"attributes.status = 'RUNNING' and tags.`mlflow.parentRunId` = '{mlflow_id}'"
            for child in self._runs(run["info"]["experiment_id"], children):
                self._end(child["info"]["run_id"], "KILLED")
            status = became(tags["winnow.run_id"]) or "crashed"
            self._tag(mlflow_id, {"winnow.status": status})
            self._end(mlflow_id, _ENDED.get(status, "FINISHED"))
            ended.append(tags["winnow.run_id"])
        return ended

    # -- versions -----------------------------------------------------------------------------------------------
    def find_version(self, model: str, digest: str) -> int | None:
        """The row of that digest (the first one, should there be two), or None."""
        found = self._versions(f"name = '{model}' and tags.`winnow.digest` = '{digest}'")
        return min((int(version["version"]) for version in found), default=None)

    def create_version(
        self, run: TrackedRun, child_id: str, digest: str, number: int, *, description: str, tags: Mapping[str, str]
    ) -> int:
        """Show a registered version by the model of the child run; returns MLflow's number for it. The caller holds the
        lease ``register-<model>``, and has looked for the row first: MLflow would make a second one."""
        child = self._server.get("runs/get", run_id=child_id)["run"]
        model_id = _tags(child).get("winnow.model_id")
        if model_id is None:
            raise RegistryError(f"run {child_id} of {run.model!r} logged no model; track the variant with its file")
        tags = {**tags, "winnow.digest": digest, "winnow.version": str(number), "winnow.run_id": run.run_id}
        return self._create_version(run.model, model_id, tags, run_id=child_id, description=description)

    def restore_version(self, model: str, variant: Variant, number: int, onnx_file: Callable[[], Path]) -> int:
        """Show a version again that MLflow has lost; returns MLflow's number for it. The model is the one that a run
        logged; where that is lost too, it is made of ``onnx_file``."""
        experiment, digest = self._experiment(model), variant.digest
        tags = {"winnow.digest": digest, "winnow.version": str(number), "winnow.kind": "version"}
        model_id = self._whole_models(experiment, [digest]).get(digest)
        if model_id is None:
            run = self._create_run(experiment, f"version {number}, made again", tags, _now())
            run_id = run["info"]["run_id"]
            model_id = self._log_model(experiment, run_id, VariantRun(variant=variant), onnx_file(), None)
            self._end(run_id, "FINISHED")
        text = f"Version {number} of {model}, made again from the store"
        return self._create_version(model, model_id, tags, description=text)

    def versions(self, model: str) -> list[ModelVersion]:
        """All rows of a model, oldest first; empty for an unknown model."""
        by_number = sorted(self._versions(f"name = '{model}'"), key=lambda version: int(version["version"]))
        return [
            ModelVersion(
                model=model,
                version=int(version["version"]),
                digest=tags.get("winnow.digest", ""),
                run_id=tags.get("winnow.run_id", ""),
                number=int(number) if (number := tags.get("winnow.version", "")).isdecimal() else None,
            )
            for version in by_number
            for tags in [by_key(version.get("tags", []))]
        ]

    def tag_version(self, model: str, version: int, tags: Mapping[str, str]) -> None:
        """Set tags of a row."""
        for key, value in tags.items():
            self._server.post("model-versions/set-tag", name=model, version=str(version), key=key, value=value)

    # -- aliases ------------------------------------------------------------------------------------------------
    def alias(self, model: str, name: str) -> int | None:
        """The row that the alias points to; None for none."""
        try:
            found = self._server.get("registered-models/alias", name=model, alias=name)
        except RegistryError as error:
            # MLflow says INVALID_PARAMETER_VALUE for an alias that a known model does not have.
            if error.code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
                return None
            raise
        return int(found["model_version"]["version"])

    def set_alias(self, model: str, name: str, version: int) -> None:
        """Point the alias to the row."""
        self._server.post("registered-models/alias", name=model, alias=name, version=str(version))

    def drop_alias(self, model: str, name: str) -> None:
        """Remove the alias; harmless where there is none."""
        self._server.send("DELETE", "registered-models/alias", {"name": model, "alias": name})

    # -- plumbing -----------------------------------------------------------------------------------------------
    def _experiment(self, model: str) -> str:
        found = self._find_experiment(model)
        if found is None:
            try:
                tags = pairs(run_page.EXPERIMENT_TAGS)
                return str(self._server.post("experiments/create", name=model, tags=tags)["experiment_id"])
            except RegistryError as error:
                if error.code != "RESOURCE_ALREADY_EXISTS":  # another run was quicker
                    raise
                found = self._find_experiment(model)
                if found is None:
                    raise
        experiment = str(found["experiment_id"])
        if found["lifecycle_stage"] == "deleted":
            self._server.post("experiments/restore", experiment_id=experiment)
        return experiment

    def _find_experiment(self, name: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self._server.get("experiments/get-by-name", experiment_name=name)["experiment"]
        except RegistryError as error:
            if error.code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return found

    def _create_run(self, experiment: str, name: str, tags: Mapping[str, str], started_ms: int) -> Run:
        body = {"experiment_id": experiment, "run_name": name, "start_time": started_ms, "tags": pairs(tags)}
        created: Run = self._server.post("runs/create", **body)["run"]
        return created

    def _find_run(self, experiment: str, where: str) -> Run | None:
        oldest = {"order_by": ["attributes.start_time ASC"], "max_results": 1}
        found = self._server.post("runs/search", experiment_ids=[experiment], filter=where, **oldest)
        return next(iter(found.get("runs", [])), None)

    def _runs(self, experiment: str, where: str) -> list[Run]:
        return self._server.every("runs/search", "runs", experiment_ids=[experiment], filter=where)

    def _whole_models(self, experiment: str, digests: Iterable[str]) -> dict[str, str]:
        """Ids of logged models by digest, as far as they are there and whole."""
        listed = ", ".join(f"'{digest}'" for digest in digests)
        models = self._server.every(
            "logged-models/search",
            "models",
            experiment_ids=[experiment],
            filter=f"tags.`winnow.digest` IN ({listed})",
        )
        whole = [model["info"] for model in models if model["info"]["status"] == "LOGGED_MODEL_READY"]
        return {by_key(info["tags"])["winnow.digest"]: info["model_id"] for info in whole}

    def _create_version(self, model: str, model_id: str, tags: Mapping[str, str], **about: str) -> int:
        try:
            self._server.post("registered-models/create", name=model)
        except RegistryError as error:
            if error.code != "RESOURCE_ALREADY_EXISTS":
                raise
        made = self._server.post(
            "model-versions/create",
            name=model,
            source=f"models:/{model_id}",
            model_id=model_id,
            tags=pairs(tags),
            **about,
        )
        return int(made["model_version"]["version"])

    def _versions(self, where: str) -> list[dict[str, Any]]:
        found = self._server.get("model-versions/search", filter=where, max_results=_MOST_VERSIONS)
        return list(found.get("model_versions", []))

    def _tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        self._server.post("runs/log-batch", run_id=run_id, tags=pairs(tags))

    def _end(self, run_id: str, status: str) -> None:
        self._server.post("runs/update", run_id=run_id, status=status, end_time=_now())

    def _log_inputs(self, run_id: str, dataset: Dataset, context: str) -> None:
        about = {
            "name": dataset.name,
            "digest": dataset.digest,
            "source_type": "s3",
            "source": json.dumps({"uri": dataset.source}),
            "schema": dataset.features_json(),
            "profile": dataset.rows_json(),
        }
        used = {"dataset": about, "tags": pairs({"mlflow.data.context": context})}
        self._server.post("runs/log-inputs", run_id=run_id, datasets=[used])

    def _log_numbers(
        self,
        run: Run,
        row: VariantRun,
        history: bytes,
        dataset: Dataset,
        model_id: str | None,
        tags: Mapping[str, str],
    ) -> None:
        run_id, at = run["info"]["run_id"], run["info"]["start_time"]  # a fixed time: writing again changes nothing
        numbers = run_page.metrics(row.measurement) if row.measurement else {}
        origin = {"dataset_name": dataset.name, "dataset_digest": dataset.digest}
        origin |= {"model_id": model_id} if model_id else {}
        metrics: list[dict[str, Any]] = [
            {"key": key, "value": value, "timestamp": at, "step": 0, **origin} for key, value in numbers.items()
        ]
        metrics += [
            {"key": key, "value": value, "timestamp": at, "step": step} for key, step, value in run_page.curves(history)
        ]
        about = {"params": pairs(run_page.params(row)), "tags": pairs(tags)}
        self._server.post("runs/log-batch", run_id=run_id, metrics=metrics[:_BATCH], **about)
        for start in range(_BATCH, len(metrics), _BATCH):
            self._server.post("runs/log-batch", run_id=run_id, metrics=metrics[start : start + _BATCH])

    def _log_model(
        self,
        experiment: str,
        child_id: str,
        row: VariantRun,
        onnx_file: Path,
        example: Mapping[str, NDArray[Any]] | None,
    ) -> str:
        variant = row.variant
        model = self._server.post(
            "logged-models",
            experiment_id=experiment,
            name=variant.name.replace(".", "-"),  # MLflow's model names take no dots; its run names do
            source_run_id=child_id,
            model_type="onnx",
            params=pairs(run_page.params(row)),
            tags=pairs({"winnow.digest": variant.digest, "winnow.stage": variant.stage}),
        )["model"]["info"]
        model_id: str = model["model_id"]
        size = onnx_file.stat().st_size
        around = files_around(variant, model_id=model_id, run_id=child_id, size=size, example=example)
        status = "LOGGED_MODEL_UPLOAD_FAILED"
        try:
            self._upload(model["artifact_uri"], {ONNX_FILE: onnx_file, **around})
            status = "LOGGED_MODEL_READY"
        finally:
            self._server.send("PATCH", f"logged-models/{model_id}", {"model_id": model_id, "status": status})
        return model_id

    def _upload(self, artifacts: str, files: Mapping[str, bytes | Path]) -> None:
        if self._server.takes_files_for(artifacts):
            for name, content in files.items():
                self._server.put_file(artifacts, name, content)
            return
        # A server that leaves the files to its callers: MLflow's own client knows all the places where they may lie.
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
            get_artifact_repository(artifacts, tracking_uri=self.uri).log_artifacts(folder)


def _tags(run: Run) -> dict[str, str]:
    return by_key(run["data"].get("tags", []))


def _now() -> int:
    return int(time.time() * 1000)
