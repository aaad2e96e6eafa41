"""The data stage's process: load the workload's splits, store them, check them, write the page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from model_registry.manifest import FileEntry, canonical_json, hash_bytes
from tasks.data.given_splits import given_splits
from tasks.data.materialise import npz_bytes, storable
from tasks.readers.reading import Reading
from tasks.running.child import Child, Result
from tasks.running.errors import DataCheckFailed
from tasks.running.files_read import watched_reading
from tasks.running.splits import TARGET, Columns, ColumnSpec, DataRef, LanguageRef, SplitRef
from tasks.running.task_kind import TaskKind
from tasks.workloads.workload import Workload, choice_rows, continues_text, load_workload

if TYPE_CHECKING:
    from tasks.data.checking import Checked

PAGE = "data_docs.html"


def main(child: Child) -> Result:
    """Materialise and check. Raises as :func:`tasks.data.check_data`."""
    child.progress(0.0, "reading the data")
    workload = load_workload(child.job.workload)
    module = child.job.workload.path.partition(":")[0]
    with watched_reading(module, child.job.workload.folder) as reads:
        given = given_splits(workload)
    splits, language = storable(given.splits), _language(child, workload)
    child.progress(0.2, "storing the splits")
    data = _store(child, workload, splits).model_copy(update={"language": language})
    child.progress(0.3, "checking")
    # Great Expectations takes seconds to import; data that cannot even be read is refused before.
    from tasks.data.check_splits import check_splits

    checked = check_splits(
        splits,
        task=data.task,
        labels=data.labels,
        own_frame=workload.frame,
        fills_missing=workload.fills_missing,
        spec=child.spec,
        source_rows=given.source_rows,
        given=given.splits,
    )
    page = _page(child, data, checked, given.reading)
    critical = checked.of("critical")
    if critical:
        raise DataCheckFailed(
            f"{checked.headline}, nothing was trained:\n" + "\n".join(f"  {finding}" for finding in critical),
            failures=[finding.to_json() for finding in critical],
            warnings=[*given.reading.findings, *map(str, checked.of("warning"))],
            reading=list(given.reading.facts),
            data_docs=page.model_dump(mode="json"),
        )
    values: dict[str, Any] = {
        "data": data.model_dump(mode="json"),
        "reading": list(given.reading.facts),
        "warnings": [*given.reading.findings, *(str(f) for f in checked.of("warning") if not f.could_not_run)],
        "could_not_run": [str(f) for f in checked.of("warning") if f.could_not_run],
        "findings": [finding.to_json() for finding in checked.findings],
        "passed": checked.passed,
        "rows": {split.name: split.rows for split in data.splits},
        "read": reads.noted(),
    }
    asked = (language.questions,) if language is not None and language.questions is not None else ()
    return Result(values=values, files=(*(split.file for split in data.splits), page, *asked))


def _store(child: Child, workload: Workload, splits: dict[str, Columns]) -> DataRef:
    files: dict[str, FileEntry] = {}
    for name, columns in splits.items():
        files[name] = child.store.publish_bytes(npz_bytes(columns), f"splits/{name}.npz")
    train = splits["train"]
    return DataRef(
        fingerprint=hash_bytes(canonical_json({name: entry.sha256 for name, entry in files.items()})),
        splits=tuple(SplitRef(name=name, file=files[name], rows=len(splits[name][TARGET])) for name in splits),
        columns={name: _column(values) for name, values in sorted(train.items())},
        task=workload.ref.task or _task(train[TARGET]),
        metric=workload.metric_ref(train[TARGET]),
        labels=workload.labels(),
    )


def _language(child: Child, workload: Workload) -> LanguageRef | None:
    if not continues_text(workload):
        return None
    rows = choice_rows(workload)
    if rows is None:
        return LanguageRef()
    stored = child.store.publish_bytes(npz_bytes(vars(rows)), "questions.npz")
    return LanguageRef(questions=stored, count=int(rows.question[-1]) + 1)


def _column(values: np.ndarray) -> ColumnSpec:
    missing = values.dtype.kind == "f" and bool(np.isnan(values).any())
    return ColumnSpec(dtype=values.dtype.name, shape=tuple(values.shape[1:]), missing=missing)


def _task(target: np.ndarray) -> TaskKind:
    if np.issubdtype(target.dtype, np.floating):
        return "regression"
    return "classes" if target.ndim == 1 else "other"


def _page(child: Child, data: DataRef, checked: Checked, reading: Reading) -> FileEntry:
    from tasks.data.data_docs import data_docs_page

    facts = {
        "workload": child.job.workload.path,
        "fingerprint": data.fingerprint,
        "columns": ", ".join(f"{name} {c.dtype} {list(c.shape)}" for name, c in data.columns.items()),
    }
    facts |= {"understood": " ".join(reading.facts)}
    facts |= {f"look at {number}": finding for number, finding in enumerate(reading.findings, start=1)}
    page = data_docs_page(f"Data of {child.job.model}", facts, checked)
    return child.store.publish_bytes(page.encode(), PAGE)
