"""The records of all runs, ``runs/<id>.json``: the newest ones, and one by name."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from pydantic import ValidationError

from model_registry.store import CorruptObject, Store
from model_registry.variant import NewerRecord
from tasks.report.run_report import RunReport, load_run
from tasks.running.errors import RunUnreadable

_log = logging.getLogger("winnow.run")
_UNREADABLE = (NewerRecord, ValidationError, CorruptObject)
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

    Raises:
        RunUnreadable: the run that was named has a damaged record; others with one are passed over.
    """
    ids = _ids(store)
    starting = [run_id for run_id in ids if run_id.startswith(what)]
    if what in ids or len(starting) == 1:
        run_id = what if what in ids else starting[0]
        try:
            return load_run(store, run_id)
        except _UNREADABLE as error:
            raise RunUnreadable(
                f"the record of run {run_id} cannot be read: {_first_line(error)}; restore an older version of "
                f"{_PREFIX}{run_id}{_SUFFIX} in {store.records_bucket}, or look at another run"
            ) from error
    first: RunReport | None = None
    for report in _newest(store):
        if what in ("latest", report.model):
            first = first or report
            if report.variants or not measured:
                return report
    return first


def readable_run(store: Store, run_id: str) -> RunReport | None:
    """The run's record; None where there is none, or, with a warning, where it cannot be read."""
    try:
        return load_run(store, run_id)
    except _UNREADABLE as error:
        _log.warning("the record of run %s cannot be read and is passed over: %s", run_id, _first_line(error))
        return None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _ids(store: Store) -> list[str]:
    """Run ids, oldest first: they begin with the time."""
    keys = store.list_records(_PREFIX)
    return [key.removeprefix(_PREFIX).removesuffix(_SUFFIX) for key in keys if key.endswith(_SUFFIX)]


def _newest(store: Store) -> Iterator[RunReport]:
    """All runs, newest first, read a page at a time."""
    ids = _ids(store)[::-1]
    with ThreadPoolExecutor(max_workers=_PAGE) as pool:
        for start in range(0, len(ids), _PAGE):
            for report in pool.map(lambda run_id: readable_run(store, run_id), ids[start : start + _PAGE]):
                if report is not None:
                    yield report
