"""``winnow.load``: a model that was made, ready to answer in this process."""

from __future__ import annotations

import os
from pathlib import Path

from flows.calls.run_frames import find_report
from flows.calls.run_result import RunResult
from flows.reaching import reach_store
from model_registry.ledger import Ledger
from model_registry.store import Store
from serving.loaded_model import LoadedModel
from tasks.running.errors import WinnowError

CHAMPION = "champion"


def load_model(what: str | Path | RunResult, *, threads: int | None = None) -> LoadedModel:
    """Load a model with the engine that serves it. Its files are verified against their hashes.

    Args:
        what: ``"digits@champion"`` (or just ``"digits"``): the version in service; ``"digits@3"``: a registered
            version; a run id or its beginning, or what :func:`winnow.run` returned: the variant that run chose,
            released or not; a path that ends in ``.onnx``: any ONNX file.
        threads: intra-op threads of ONNX Runtime; None = as the variant was measured and is served.

    Raises:
        WinnowError: there is no such model or run, or the run chose nothing.
        StoreError: ``VersionMissing``: there is no such version.
        FileNotFoundError: there is no file of that name.
        ServingError: the file is not what its manifest says, or ONNX Runtime refuses it.
        StackDown: the stack does not run (a file needs none).
    """
    if isinstance(what, Path) or (isinstance(what, str) and what.endswith(".onnx")):
        return LoadedModel.from_file(Path(what), threads=threads)
    store = reach_store()
    digest, name = _digest(store, what)
    cache = Path(os.environ.get("WINNOW_HOME", ".winnow")).absolute() / "endpoint-cache"
    return LoadedModel.from_store(cache, store, digest, name=name, threads=threads)


def _digest(store: Store, what: str | RunResult) -> tuple[str, str]:
    """The digest of the variant that is meant, and a name for it."""
    if isinstance(what, RunResult):
        return _chosen(what)
    model, at, which = what.partition("@")
    if at and which.isdecimal():
        from flows.release import variant_of

        return variant_of(store, model, int(which)), what
    if at and which != CHAMPION:
        raise WinnowError(f"{what!r}: after @ comes {CHAMPION} or a version's number")
    entry = Ledger(store).champion(model)
    if entry is not None:
        return entry.digest, f"{model}@{CHAMPION}"
    if at:
        known = Ledger(store).models()
        hint = f"released models: {', '.join(known)}" if known else "nothing was released yet"
        raise WinnowError(f"{model!r} has no champion ({hint}); release one with winnow.run()")
    return _chosen(RunResult(find_report(what)))


def _chosen(result: RunResult) -> tuple[str, str]:
    if result.report.chosen is None:
        raise WinnowError(f"run {result.run_id} ({result.status}) chose nothing: {result}")
    return result.report.chosen, result.run_id
