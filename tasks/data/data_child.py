"""The data stage's process: load the workload's splits, store them, check them, write the page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model_registry.manifest import FileEntry, canonical_json, hash_bytes
from tasks.data.given_splits import GivenSplits, given_partitions, given_splits, row_facts
from tasks.data.materialise import lacks_values, npz_bytes, storable
from tasks.data.split_files import SplitFiles
from tasks.readers.reading import Reading
from tasks.running.child import Child, Result
from tasks.running.errors import DataCheckFailed, DataReadError
from tasks.running.files_read import watched_reading
from tasks.running.splits import SPLITS, TARGET, Columns, ColumnSpec, DataRef, LanguageRef, SplitRef
from tasks.running.task_kind import TaskKind
from tasks.workloads.workload import Workload, choice_rows, continues_text, learned_of_rows, load_workload

if TYPE_CHECKING:
    from tasks.data.checking import Checked

PAGE = "data_docs.html"


def main(child: Child) -> Result:
    """Materialise and check. Raises as :func:`tasks.data.check_data`."""
    child.progress(0.0, "reading the data")
    workload = load_workload(child.job.workload)
    module = child.job.workload.path.partition(":")[0]
    with watched_reading(module, child.job.workload.folder) as reads:
        parts = given_partitions(workload, child.workdir / "given")
        given = given_splits(workload) if parts is None else _taken(child, workload, parts)
    data, checked = (
        _whole(child, workload, given) if isinstance(given, GivenSplits) else _parted(child, workload, given)
    )
    language = _language(child, workload)
    data = data.model_copy(update={"language": language})
    reading = given.reading
    page = _page(child, data, checked, reading)
    critical = checked.of("critical")
    if critical:
        raise DataCheckFailed(
            f"{checked.headline}, nothing was trained:\n" + "\n".join(f"  {finding}" for finding in critical),
            failures=[finding.to_json() for finding in critical],
            warnings=[*reading.findings, *map(str, checked.of("warning"))],
            reading=list(reading.facts),
            data_docs=page.model_dump(mode="json"),
        )
    values: dict[str, Any] = {
        "data": data.model_dump(mode="json"),
        "reading": list(reading.facts),
        "warnings": [*reading.findings, *(str(f) for f in checked.of("warning") if not f.could_not_run)],
        "could_not_run": [str(f) for f in checked.of("warning") if f.could_not_run],
        "findings": [finding.to_json() for finding in checked.findings],
        "passed": checked.passed,
        "rows": {split.name: split.rows for split in data.splits},
        "read": reads.noted(),
    }
    asked = (language.questions,) if language is not None and language.questions is not None else ()
    return Result(values=values, files=(*(split.file for split in data.splits), page, *asked))


def _whole(child: Child, workload: Workload, given: GivenSplits) -> tuple[DataRef, Checked]:
    """Store and check splits that are in memory."""
    splits = storable(given.splits)
    child.progress(0.2, "storing the splits")
    files = {n: child.store.publish_bytes(npz_bytes(columns), f"splits/{n}.npz") for n, columns in splits.items()}
    missing = {name for name, values in splits["train"].items() if lacks_values(values)}
    data = _ref(workload, files, {name: len(splits[name][TARGET]) for name in splits}, splits["train"], missing)
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
    return data, checked


@dataclass(frozen=True)
class _Taken:
    """Partitions, all on disk. ``sample``: the first as it was given."""

    files: SplitFiles
    sample: dict[str, Columns]
    reading: Reading


def _taken(child: Child, workload: Workload, parts: Iterator[GivenSplits]) -> _Taken:
    files, sample, reading = SplitFiles(child.workdir / "columns"), dict[str, Columns](), Reading()
    for number, part in enumerate(parts, 1):
        files.add(storable(part.splits), part.source_rows)
        sample, reading = sample or part.splits, reading + part.reading
        child.progress(0.1, f"partition {number}")
    lacking = [name for name in SPLITS if name not in files.rows]
    if lacking:
        raise DataReadError(f"{workload.ref.path}.partitions(): no partition has rows of {lacking}; bring more rows")
    return _Taken(files, sample, reading + Reading(row_facts(files.rows, workload)))


def _parted(child: Child, workload: Workload, taken: _Taken) -> tuple[DataRef, Checked]:
    """Check splits that lie on disk, and store them."""
    files = taken.files
    child.progress(0.3, "checking")
    from tasks.data.check_parts import check_parts

    few = files.slices("train", 0, 1)
    task = workload.ref.task or _task(few[TARGET])
    checked = check_parts(
        files,
        task=task,
        labels=workload.labels(),
        own_frame=workload.frame,
        fills_missing=workload.fills_missing,
        spec=child.spec,
        sample=taken.sample,
    )
    child.progress(0.8, "storing the splits")
    folder = child.workdir / "archives"
    for name in SPLITS:
        files.write_npz(name, folder / "splits" / f"{name}.npz")
    stored = {Path(entry.path).stem: entry for entry in child.store.publish_folder(folder)}
    data = _ref(workload, {name: stored[name] for name in SPLITS}, files.rows, few, files.missing)
    return data, checked


def _ref(
    workload: Workload, files: dict[str, FileEntry], rows: dict[str, int], train: Columns, missing: set[str]
) -> DataRef:
    """The data as a value. ``train``: any rows of it; ``missing``: its columns that are NaN somewhere."""
    return DataRef(
        fingerprint=hash_bytes(canonical_json({name: entry.sha256 for name, entry in files.items()})),
        splits=tuple(SplitRef(name=name, file=file, rows=rows[name]) for name, file in files.items()),
        columns={
            name: ColumnSpec(dtype=values.dtype.name, shape=tuple(values.shape[1:]), missing=name in missing)
            for name, values in sorted(train.items())
        },
        task=workload.ref.task or _task(train[TARGET]),
        metric=workload.metric_ref(train[TARGET]),
        labels=workload.labels(),
        known=learned_of_rows(workload),
    )


def _language(child: Child, workload: Workload) -> LanguageRef | None:
    if not continues_text(workload):
        return None
    rows = choice_rows(workload)
    if rows is None:
        return LanguageRef()
    stored = child.store.publish_bytes(npz_bytes(vars(rows)), "questions.npz")
    return LanguageRef(questions=stored, count=int(rows.question[-1]) + 1)


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
