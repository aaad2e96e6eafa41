"""The MLflow registry: runs to compare, models, versions, aliases. The only module that talks to MLflow.

MLflow is a view: what a stage made is in the store, who is champion is in the ledger. Everything here is
get-or-create, so that a step that is tried again leaves one run and one version. Explicit ids throughout: MLflow's
fluent interface keeps the active run per thread, and steps run in threads.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_registry import run_page
from model_registry.datatypes import NUMPY_NAMES
from model_registry.owner import Owner
from model_registry.quiet import TELEMETRY_OFF
from model_registry.run_page import Dataset, Status, TrackedRun, VariantRun
from model_registry.variant import Frozen, TensorSpec, Variant

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.models import ModelSignature
    from numpy.typing import NDArray

CHAMPION, CHALLENGER = "champion", "challenger"
_ENDED = {"failed": "FAILED", "interrupted": "KILLED", "crashed": "KILLED"}  # any other status ends FINISHED
_BATCH = 900  # metrics a request; the server takes 1000


class RegistryError(Exception):
    """Base of what the registry raises; also MLflow's own refusals."""


class RegistryUnavailable(RegistryError, ConnectionError):
    """MLflow does not answer or answers 5xx. It may pass: steps are tried again."""


class VersionMissing(RegistryError):
    """The model has no such version; names those it has."""


class ModelVersion(Frozen):
    """A registered version; ``digest`` is its tag ``winnow.digest``, empty for one that Winnow did not make."""

    model: str
    version: int
    digest: str
    run_id: str


def preload() -> None:
    """Import MLflow, which takes two seconds, and have it look at what is installed, which takes a third of one."""
    _client_class()
    _import_flavour()
    from mlflow.utils.requirements_utils import warn_dependency_requirement_mismatches

    warn_dependency_requirement_mismatches(["numpy"])  # as it does when it saves a model; it remembers the packages


class Registry:
    """One MLflow server. Safe to share between threads."""

    def __init__(self, tracking_uri: str) -> None:
        self.uri = tracking_uri.rstrip("/")
        self._client: MlflowClient = _client_class()(tracking_uri=self.uri, registry_uri=self.uri)

    @classmethod
    def from_environment(cls) -> Registry:
        """The server of MLFLOW_TRACKING_URI; RegistryError where it is not set."""
        uri = os.environ.get("MLFLOW_TRACKING_URI", "")
        if not uri:
            raise RegistryError("MLFLOW_TRACKING_URI is not set; start the stack with `winnow up`")
        return cls(uri)

    # -- runs ---------------------------------------------------------------------------------------------------
    def open_run(self, model: str, run_id: str, tags: Mapping[str, str] | None = None) -> TrackedRun:
        """The parent run of a pipeline run, created as RUNNING where it is not there yet."""
        with self._told():
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
                run = self._client.create_run(experiment, tags={**ours, **(tags or {})}, run_name=run_id)
        mlflow_id = str(run.info.run_id)
        return TrackedRun(
            uri=self.uri,
            model=model,
            run_id=run_id,
            experiment=experiment,
            mlflow_id=mlflow_id,
            started_ms=int(run.info.start_time),
        )

    def log_variant(
        self,
        run: TrackedRun,
        row: VariantRun,
        *,
        dataset: Dataset,
        history: bytes = b"",
        onnx_file: Path | None = None,
        example: Mapping[str, NDArray[Any]] | None = None,
        tags: Mapping[str, str] | None = None,
        position: int = 0,
    ) -> str:
        """Write one variant as a finished child run, with its model where ``onnx_file`` is given; returns its id.

        ``position`` is its place in the chain: MLflow lists the newest run first, so that later ones start earlier.
        """
        digest = row.variant.digest
        with self._told():
            where = f"tags.`mlflow.parentRunId` = '{run.mlflow_id}' and tags.`winnow.digest` = '{digest}'"
            child = self._find_run(run.experiment, where)
            if child is None:
                ours = run_page.tags(row, run.run_id) | {
                    "mlflow.parentRunId": run.mlflow_id,
                    "mlflow.source.name": f"winnow {row.variant.stage}",
                    "mlflow.source.type": "JOB",
                }
                child = self._client.create_run(
                    run.experiment,
                    start_time=run.started_ms - 1 - position,
                    tags={**(tags or {}), **ours},
                    run_name=row.variant.name,
                )
            child_id = str(child.info.run_id)
            model_id = child.data.tags.get("winnow.model_id")
            if onnx_file is not None and model_id is None:
                model_id = self._log_model(run.experiment, child_id, row, onnx_file, example)
            self._log_inputs(child_id, dataset, row.measurement.split if row.measurement else "train")
            self._log_numbers(child, run_page.params(row), row, history, dataset, model_id)
            self._client.set_terminated(child_id, "FINISHED")
        return child_id

    def log_data(self, run: TrackedRun, dataset: Dataset) -> None:
        """Give the parent run its data; before its variants, since MLflow makes a dataset twice that two name first."""
        with self._told():
            self._log_inputs(run.mlflow_id, dataset, "train")

    def describe_run(
        self, run: TrackedRun, rows: Sequence[VariantRun], *, dataset: Dataset, note: str, tags: Mapping[str, str]
    ) -> None:
        """Give the parent run its description and the numbers of the chosen variant, and the experiment a view that
        compares variants."""
        with self._told():
            parent = self._client.get_run(run.mlflow_id)
            chosen = next((row for row in rows if row.chosen), None)
            if chosen is not None:
                self._log_numbers(parent, run_page.params(chosen), chosen, b"", dataset, None)
            self._tag(run.mlflow_id, {**tags, "mlflow.note.content": note})
            measured = next((row.measurement for row in rows if row.measurement is not None), None)
            if measured is not None:
                saved = run_page.view(measured.metric.name, run.started_ms)
                self._client.set_experiment_tag(run.experiment, run_page.VIEW_TAG, saved)

    def log_folder(self, run: TrackedRun, folder: Path) -> None:
        """Put everything below the folder among the parent run's artifacts, where MLflow's UI shows it."""
        with self._told():
            self._client.log_artifacts(run.mlflow_id, str(folder))

    def end_run(self, run: TrackedRun, status: Status, tags: Mapping[str, str] | None = None) -> None:
        """End the parent run: refused, registered and released runs are FINISHED, the others FAILED or KILLED."""
        with self._told():
            self._tag(run.mlflow_id, {**(tags or {}), "winnow.status": status})
            self._client.set_terminated(run.mlflow_id, _ENDED.get(status, "FINISHED"))

    def end_dead_runs(self, model: str) -> list[str]:
        """Mark the RUNNING runs of this machine whose process is gone as KILLED; returns their winnow run ids."""
        ended = []
        with self._told():
            where = "attributes.status = 'RUNNING' and tags.`winnow.kind` = 'run'"
            for run in self._client.search_runs([self._experiment(model)], where):
                owner = run.data.tags.get("winnow.owner")
                if owner is None or not Owner.model_validate_json(owner).provably_dead():
                    continue
                children = f"attributes.status = 'RUNNING' and tags.`mlflow.parentRunId` = '{run.info.run_id}'"
                for child in self._client.search_runs([run.info.experiment_id], children):
                    self._client.set_terminated(child.info.run_id, "KILLED")
                self._tag(run.info.run_id, {"winnow.status": "crashed"})
                self._client.set_terminated(run.info.run_id, "KILLED")
                ended.append(str(run.data.tags["winnow.run_id"]))
        return ended

    # -- versions -----------------------------------------------------------------------------------------------
    def find_version(self, model: str, digest: str) -> int | None:
        """The version of that digest (the first one, should there be two), or None."""
        with self._told():
            where = f"name = '{model}' and tags.`winnow.digest` = '{digest}'"
            return min((int(v.version) for v in self._client.search_model_versions(where)), default=None)

    def create_version(
        self, run: TrackedRun, child_id: str, digest: str, *, description: str, tags: Mapping[str, str]
    ) -> int:
        """Register the model that the child run logged. The caller holds the lease ``register-<model>``, and has
        looked for the version first: MLflow would make a second one."""
        with self._told():
            child = self._client.get_run(child_id)
            model_id = child.data.tags.get("winnow.model_id")
            if model_id is None:
                raise RegistryError(f"run {child_id} of {run.model!r} logged no model; track the variant with its file")
            try:
                self._client.create_registered_model(run.model)
            except _rest_exception() as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            version = self._client.create_model_version(
                run.model,
                source=f"models:/{model_id}",
                run_id=child_id,
                model_id=model_id,
                description=description,
                await_creation_for=0,  # ready at once on every SQL store; waiting would only log a line
                tags={**tags, "winnow.digest": digest, "winnow.run_id": run.run_id},
            )
            return int(version.version)

    def version(self, model: str, version: int) -> ModelVersion:
        """A registered version; VersionMissing names those there are."""
        for found in (versions := self.versions(model)):
            if found.version == version:
                return found
        there = ", ".join(str(v.version) for v in versions) or "none; run the pipeline first"
        raise VersionMissing(f"model {model!r} has no version {version}; it has: {there}")

    def versions(self, model: str) -> list[ModelVersion]:
        """All versions of a model, oldest first; empty for an unknown model."""
        with self._told():
            found = self._client.search_model_versions(f"name = '{model}'", max_results=10_000)
        by_number = sorted(found, key=lambda v: int(v.version))
        return [
            ModelVersion(
                model=model,
                version=int(v.version),
                digest=v.tags.get("winnow.digest", ""),
                run_id=v.tags.get("winnow.run_id", ""),
            )
            for v in by_number
        ]

    # -- aliases ------------------------------------------------------------------------------------------------
    def alias(self, model: str, name: str) -> int | None:
        """The version that the alias points to; None for none."""
        with self._told():
            try:
                return int(self._client.get_model_version_by_alias(model, name).version)
            except _rest_exception() as error:
                # MLflow says INVALID_PARAMETER_VALUE for an alias that a known model does not have.
                if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
                    return None
                raise

    def set_alias(self, model: str, name: str, version: int) -> None:
        """Point the alias to the version."""
        with self._told():
            self._client.set_registered_model_alias(model, name, str(version))

    def drop_alias(self, model: str, name: str) -> None:
        """Remove the alias; harmless where there is none."""
        with self._told():
            self._client.delete_registered_model_alias(model, name)

    # -- plumbing -----------------------------------------------------------------------------------------------
    def _experiment(self, model: str) -> str:
        found = self._client.get_experiment_by_name(model)
        if found is None:
            try:
                return str(self._client.create_experiment(model, tags=run_page.EXPERIMENT_TAGS))
            except _rest_exception() as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another run was quicker
                    raise
                found = self._client.get_experiment_by_name(model)
        elif found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _find_run(self, experiment: str, where: str) -> Run | None:
        runs = self._client.search_runs([experiment], where, order_by=["attributes.start_time ASC"], max_results=1)
        return runs[0] if runs else None

    def _tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def _log_inputs(self, run_id: str, dataset: Dataset, context: str) -> None:
        from mlflow.entities import Dataset as Entity
        from mlflow.entities import DatasetInput, InputTag

        entity = Entity(
            name=dataset.name,
            digest=dataset.digest,
            source_type="s3",
            source=json.dumps({"uri": dataset.source}),
            schema=dataset.features_json(),
            profile=dataset.rows_json(),
        )
        tags = [InputTag("mlflow.data.context", context)]
        self._client.log_inputs(run_id, datasets=[DatasetInput(entity, tags)])

    def _log_numbers(
        self,
        run: Run,
        params: Mapping[str, str],
        row: VariantRun,
        history: bytes,
        dataset: Dataset,
        model_id: str | None,
    ) -> None:
        from mlflow.entities import Metric, Param

        run_id, at = run.info.run_id, run.info.start_time  # a fixed time: writing it again changes nothing
        numbers = run_page.metrics(row.measurement) if row.measurement else {}
        origin = {"dataset_name": dataset.name, "dataset_digest": dataset.digest}
        final = [Metric(key, value, at, 0, model_id=model_id, **origin) for key, value in numbers.items()]
        curve = [Metric(key, value, at, step) for key, step, value in run_page.curves(history)]
        self._client.log_batch(run_id, metrics=final, params=[Param(k, v) for k, v in params.items()])
        for start in range(0, len(curve), _BATCH):
            self._client.log_batch(run_id, metrics=curve[start : start + _BATCH])

    def _log_model(
        self,
        experiment: str,
        child_id: str,
        row: VariantRun,
        onnx_file: Path,
        example: Mapping[str, NDArray[Any]] | None,
    ) -> str:
        _import_flavour()
        import onnx
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model
        from mlflow.onnx import save_model

        variant = row.variant
        logged = self._client.create_logged_model(
            # MLflow's model names take no dots; its run names, which people read, do.
            experiment,
            name=variant.name.replace(".", "-"),
            source_run_id=child_id,
            model_type="onnx",
            params=run_page.params(row),
        )
        model_id = str(logged.model_id)
        try:
            with tempfile.TemporaryDirectory() as folder:
                save_model(
                    onnx.load_model(onnx_file, load_external_data=False),
                    str(Path(folder) / "model"),
                    mlflow_model=Model(model_id=model_id, run_id=child_id),
                    signature=_signature(variant),
                    input_example=dict(example) if example is not None else None,
                    pip_requirements=["onnxruntime", "numpy"],  # else MLflow loads the model to find out
                    onnx_execution_providers=[variant.runtime.provider],
                    onnx_session_options={"intra_op_num_threads": variant.runtime.intra_op_threads},
                    save_as_external_data=False,
                    metadata={"winnow.digest": variant.digest},
                )
                self._client.log_model_artifacts(model_id, str(Path(folder) / "model"))
        except BaseException:
            self._client.finalize_logged_model(model_id, "FAILED")
            raise
        self._client.finalize_logged_model(model_id, "READY")
        self._client.set_logged_model_tags(model_id, {"winnow.digest": variant.digest, "winnow.stage": variant.stage})
        self._client.log_outputs(child_id, [LoggedModelOutput(model_id, step=0)])
        self._tag(child_id, {"winnow.model_id": model_id})
        return model_id

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn MLflow's and requests' errors into ours."""
        from mlflow.exceptions import MlflowException
        from requests.exceptions import RequestException

        try:
            yield
        except (MlflowException, RequestException) as error:
            text = f"MLflow at {self.uri}: {error}"
            if isinstance(error, RequestException) or _may_pass(error):
                raise RegistryUnavailable(f"{text}; `winnow status` tells whether it runs") from error
            raise RegistryError(text) from error


def _may_pass(error: Any) -> bool:
    """Whether the server was out of reach or broken, rather than refusing us."""
    if isinstance(error, _rest_exception()):
        return bool(error.get_http_status_code() >= 500 or error.error_code == "RESOURCE_EXHAUSTED")
    return str(error).startswith("API request to")


def _client_class() -> Any:
    # How MLflow's client behaves can only be said by environment. Retries: ours are the steps', two minutes in all;
    # MLflow's own seven would add four minutes to each of them.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    for name, value in TELEMETRY_OFF.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    return MlflowClient


_importing = threading.Lock()


def _import_flavour() -> None:
    with _importing, warnings.catch_warnings():  # the latter is for one thread at a time
        warnings.simplefilter("ignore")  # MLflow warns about the type hints of its own chat models
        import mlflow.onnx
        import mlflow.pyfunc  # noqa: F401 - save_model would load it late, warnings and all


def _rest_exception() -> Any:
    from mlflow.exceptions import RestException

    return RestException


def _signature(variant: Variant) -> ModelSignature:
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema
    from mlflow.types import TensorSpec as Tensor

    names = {**NUMPY_NAMES, "BYTES": "str"}

    def schema(specs: Sequence[TensorSpec]) -> Any:
        return Schema([Tensor(np.dtype(names[s.datatype]), s.shape, s.name) for s in specs])

    return ModelSignature(schema(variant.inputs), schema(variant.outputs))
