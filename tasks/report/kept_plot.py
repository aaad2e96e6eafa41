"""The plot of an earlier run, where nothing that is drawn has changed: matplotlib takes long to import."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from model_registry.manifest import hash_bytes
from tasks.report.run_report import RunReport
from tasks.running.source_hash import closure_hash

_DRAWN = ("model", "baseline", "chosen", "conditions", "metric", "variants", "search", "spec")


def kept_plot(report: RunReport) -> bytes:
    """The PNG of :func:`tasks.report.pareto_plot.pareto_png`, drawn or as it was drawn for an earlier run.

    Raises:
        OSError: the stack's folder cannot be written.
    """
    # What is drawn sees these fields and no others, so that nothing can be missing in the name.
    drawn = RunReport(
        run_id="", status="running", started=datetime.min.replace(tzinfo=UTC), **{n: getattr(report, n) for n in _DRAWN}
    )
    code = closure_hash("tasks.report.pareto_plot")
    key = hash_bytes(b"\n".join((drawn.to_json(), code.encode(), version("matplotlib").encode())))[:24]
    folder = Path(os.environ.get("WINNOW_HOME", ".winnow")).absolute() / "cache"
    place = folder / f"pareto-{report.model}-{key}.png"
    if place.exists():
        return place.read_bytes()
    from tasks.report.pareto_plot import pareto_png

    plot = pareto_png(drawn)
    if folder.parent.is_dir():
        folder.mkdir(exist_ok=True)
        partial = folder / f".{place.name}-{os.getpid()}"
        partial.write_bytes(plot)
        for old in folder.glob(f"pareto-{report.model}-{'?' * len(key)}.png"):
            old.unlink(missing_ok=True)
        partial.replace(place)
    return plot
