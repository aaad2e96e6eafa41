"""The records of all runs, ``runs/<id>.json``: the newest ones, and one by name."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from model_registry.store import Store
from tasks.report.run_report import RunReport, load_run

_PREFIX, _SUFFIX, _PAGE = "runs/", ".json", 16


def recent_runs(store: Store, *, limit: int, model: str | None = None) -> list[RunReport]:
    """Up to ``limit`` runs, newest first."""
    found: list[RunReport] = []
    for report in _newest(store):
        if model is None or report.model == model:
            found.append(report)
        if len(found) == limit:
            break
    return found


def find_run(store: Store, what: str, *, measured: bool = False) -> RunReport | None:
    """One run; None where nothing fits.

    Args:
        what: a run id, the beginning of exactly one, ``latest``, or a model, of which the latest run is meant.
        measured: among a model's runs, prefer the latest that has variants.
    """
    ids = _ids(store)
    starting = [run_id for run_id in ids if run_id.startswith(what)]
    if what in ids or len(starting) == 1:
        return load_run(store, what if what in ids else starting[0])
    first: RunReport | None = None
    for report in _newest(store):
        if what in ("latest", report.model):
            first = first or report
            if report.variants or not measured:
                return report
    return first


def _ids(store: Store) -> list[str]:
    """Run ids, oldest first: they begin with the time."""
    keys = store.list_records(_PREFIX)
    return [key.removeprefix(_PREFIX).removesuffix(_SUFFIX) for key in keys if key.endswith(_SUFFIX)]


def _newest(store: Store) -> Iterator[RunReport]:
    """All runs, newest first, read a page at a time."""
    ids = _ids(store)[::-1]
    with ThreadPoolExecutor(max_workers=_PAGE) as pool:
        for start in range(0, len(ids), _PAGE):
            for report in pool.map(lambda run_id: load_run(store, run_id), ids[start : start + _PAGE]):
                if report is not None:
                    yield report
