"""track: write a run and its variants into MLflow, so that people can compare them. Nothing is decided here."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from model_registry.registry import Registry
from model_registry.run_page import Dataset, Status, Tracked, VariantRun, run_note
from model_registry.store import Store
from tasks.evidence.arrays import fetch_arrays
from tasks.evidence.split_inputs import split_inputs
from tasks.report.run_records import readable_run
from tasks.running.policy import step
from tasks.running.process_guard import run_folder
from tasks.running.splits import DataRef
from tasks.running.stage import Job

MODEL_LIMIT_BYTES = 32 << 20
"""ONNX variants up to this size are kept in MLflow too; of larger ones only what is registered."""
_EXAMPLE_ROWS = 2
_AT_ONCE = 3


@step("track")
def track(
    job: Job,
    *,
    data: DataRef,
    rows: tuple[VariantRun, ...],
    origin: dict[str, str] | None = None,
    links: dict[str, str] | None = None,
) -> Tracked:
    """Write the parent run and one child run per variant, whatever became of them and whether cached or not.

    Args:
        rows: every variant of the run; the one with ``chosen`` lends its numbers to the parent run.
        origin: tags that say where the run came from, on parent and children: ``prefect.flow_run_id``,
            ``prefect.flow_run_url``, ``mlflow.source.git.commit``.
        links: text -> URL, shown in the parent run's description.

    Raises:
        RegistryUnavailable: MLflow does not answer; may pass, and trying again leaves no second run.
        CorruptObject, ObjectMissing: a file of a variant to be registered is not whole any more.
    """
    store, registry = Store(job.store), Registry.from_environment()
    for row in rows:
        # Opened before anything is released: the run makes a broken file again, the endpoint cannot.
        if row.chosen or row.proven:
            for entry in row.variant.files:
                store.fetch_bytes(entry)
    origin = origin or {}
    registry.end_dead_runs(job.model, lambda run_id: _what_became(store, run_id))
    run = registry.open_run(job.model, job.run_id, origin)
    dataset = _dataset(store, job, data)
    registry.log_data(run, dataset)
    there = registry.already_there(run, rows)
    arrays = fetch_arrays(store, split_inputs(job, data)["validation"])
    example = {name: values[:_EXAMPLE_ROWS] for name, values in arrays.items()}
    with run_folder() as folder:

        def log(position: int, row: VariantRun) -> str:
            variant = row.variant

            def onnx_file() -> Path:
                return store.fetch(variant.file("model.onnx"), folder / f"{variant.digest}.onnx")

            kept = variant.format == "onnx" and (row.chosen or row.proven or variant.size <= MODEL_LIMIT_BYTES)
            return registry.log_variant(
                run,
                row,
                dataset=dataset,
                there=there,
                history=store.fetch_bytes(row.history) if row.history else b"",
                onnx_file=onnx_file if kept else None,
                example={spec.name: example[spec.name] for spec in variant.inputs if spec.name in example},
                tags=origin,
                position=position,
            )

        # A new variant takes some fifteen requests one after the other, most of them spent waiting for MLflow.
        with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
            logged = pool.map(log, range(len(rows)), rows)
            children = {row.variant.digest: child for row, child in zip(rows, logged, strict=True)}
    note = run_note(rows, "running", list((links or {}).items()))
    tags = {**origin, "winnow.data": data.fingerprint}
    registry.describe_run(run, rows, dataset=dataset, note=note, tags=tags)
    return Tracked(run=run, children=children)


@step("conclude")
def conclude(
    tracked: Tracked,
    *,
    status: Status,
    rows: tuple[VariantRun, ...] = (),
    files: dict[str, Path] | None = None,
    tags: dict[str, str] | None = None,
    links: dict[str, str] | None = None,
    remarks: Sequence[str] = (),
) -> str:
    """End the parent run with its status and its files; returns its page.

    Args:
        status: how it ended; a refused run is FINISHED in MLflow, with all its variants to compare.
        files: name among the artifacts -> local file or folder (report, plot, model card, data docs).
        tags: e.g. version and endpoint.
        remarks: sentences for the description: why it ended so, warnings, what was left out.
    """
    registry, run = Registry.from_environment(), tracked.run
    if files:
        with run_folder() as folder:
            for name, path in files.items():
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copytree(path, target) if path.is_dir() else shutil.copyfile(path, target)
            registry.log_folder(run, folder)
    pages = {name: run.file_url(name) for name in files or {} if not name.endswith(".json")}
    shown = list({**(links or {}), **pages}.items())
    note = {"mlflow.note.content": run_note(rows, status, shown, remarks)} if rows else {}
    registry.end_run(run, status, {**(tags or {}), **note})
    return run.url


def _what_became(store: Store, run_id: str) -> Status | None:
    """Of a run whose process is gone, by its record, which may say more than MLflow lived to hear."""
    report = readable_run(store, run_id)
    return None if report is None or report.status == "running" else report.status


def _dataset(store: Store, job: Job, data: DataRef) -> Dataset:
    return Dataset(
        name=job.model,
        fingerprint=data.fingerprint,
        source=f"s3://{store.bucket}/{store.blob_key(data.split('train').file.sha256)}",
        rows={split.name: split.rows for split in data.splits},
        columns={name: (column.dtype, column.shape) for name, column in data.columns.items()},
    )
