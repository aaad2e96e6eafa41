"""The data stage's process: load the workload's splits, store them, check them, write the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from model_registry.manifest import FileEntry, canonical_json, hash_bytes
from tasks.data.materialise import npz_bytes, storable
from tasks.readers.splitting import Divided
from tasks.running.child import Child, Result
from tasks.running.errors import DataCheckFailed, DataReadError
from tasks.running.files_read import watched_reading
from tasks.running.splits import TARGET, Columns, ColumnSpec, DataRef, SplitRef
from tasks.running.task_kind import TaskKind
from tasks.workloads.workload import Workload, load_workload

if TYPE_CHECKING:
    from tasks.data.checking import Checked

PAGE = "data_docs.html"


def main(child: Child) -> Result:
    """Materialise and check. Raises as :func:`tasks.data.check_data`."""
    child.progress(0.0, "reading the data")
    workload = load_workload(child.job.workload)
    module = child.job.workload.path.partition(":")[0]
    with watched_reading(module, child.job.workload.folder) as reads:
        splits, source_rows = _splits(workload)
    splits = storable(splits)
    child.progress(0.2, "storing the splits")
    data = _store(child, workload, splits)
    child.progress(0.3, "checking")
    # Great Expectations takes seconds to import; data that cannot even be read is refused before.
    from tasks.data.check_splits import check_splits

    checked = check_splits(
        splits, task=data.task, labels=data.labels, own_frame=workload.frame, spec=child.spec, source_rows=source_rows
    )
    page = _page(child, data, checked)
    critical = checked.of("critical")
    if critical:
        raise DataCheckFailed(
            f"{checked.headline}, nothing was trained:\n" + "\n".join(f"  {finding}" for finding in critical),
            failures=[finding.to_json() for finding in critical],
            warnings=[str(finding) for finding in checked.of("warning")],
            data_docs=page.model_dump(mode="json"),
        )
    values: dict[str, Any] = {
        "data": data.model_dump(mode="json"),
        "warnings": [str(f) for f in checked.of("warning") if not f.could_not_run],
        "could_not_run": [str(f) for f in checked.of("warning") if f.could_not_run],
        "findings": [finding.to_json() for finding in checked.findings],
        "passed": checked.passed,
        "rows": {split.name: split.rows for split in data.splits},
        "read": reads.noted(),
    }
    return Result(values=values, files=(*(split.file for split in data.splits), page))


def _splits(workload: Workload) -> tuple[dict[str, Columns], dict[str, NDArray[Any]]]:
    """The splits, and where their rows come from as far as that is known."""
    given = workload.user.splits()
    try:
        splits = Workload(_Given(given), workload.ref).splits()
    except ValueError as error:  # numpy's, for rows that cannot form one array
        if "inhomogeneous" not in str(error):
            raise
        raise DataReadError(
            f"{workload.ref.path}.splits() gives a column whose rows differ in shape ({error}); "
            "scale, cut or pad them to one shape"
        ) from error
    source = given.source_rows if isinstance(given, Divided) else {}
    # A user may have changed the splits since they were divided.
    return splits, {name: rows for name, rows in source.items() if len(rows) == len(splits[name][TARGET])}


@dataclass(frozen=True)
class _Given:
    """A workload whose splits are there already: they are read once and then looked at by Workload."""

    value: Any

    def splits(self) -> Any:
        return self.value


def _store(child: Child, workload: Workload, splits: dict[str, Columns]) -> DataRef:
    files: dict[str, FileEntry] = {}
    for name, columns in splits.items():
        files[name] = child.store.publish_bytes(npz_bytes(columns), f"splits/{name}.npz")
    train = splits["train"]
    return DataRef(
        fingerprint=hash_bytes(canonical_json({name: entry.sha256 for name, entry in files.items()})),
        splits=tuple(SplitRef(name=name, file=files[name], rows=len(splits[name][TARGET])) for name in splits),
        columns={n: ColumnSpec(dtype=a.dtype.name, shape=tuple(a.shape[1:])) for n, a in sorted(train.items())},
        task=workload.ref.task or _task(train[TARGET]),
        metric=workload.metric_ref(train[TARGET]),
        labels=workload.labels(),
    )


def _task(target: np.ndarray) -> TaskKind:
    if np.issubdtype(target.dtype, np.floating):
        return "regression"
    return "classes" if target.ndim == 1 else "other"


def _page(child: Child, data: DataRef, checked: Checked) -> FileEntry:
    from tasks.data.data_docs import data_docs_page

    facts = {
        "workload": child.job.workload.path,
        "fingerprint": data.fingerprint,
        "rows": ", ".join(f"{split.name} {split.rows}" for split in data.splits),
        "columns": ", ".join(f"{name} {c.dtype} {list(c.shape)}" for name, c in data.columns.items()),
    }
    page = data_docs_page(f"Data of {child.job.model}", facts, checked)
    return child.store.publish_bytes(page.encode(), PAGE)
