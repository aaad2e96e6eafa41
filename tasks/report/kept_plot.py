"""The plot of an earlier run, where nothing that is drawn has changed: matplotlib takes long to import."""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from model_registry.manifest import hash_bytes
from tasks.report.run_report import RunReport
from tasks.running.source_hash import closure_hash

_DRAWN = ("model", "baseline", "chosen", "conditions", "metric", "variants", "search", "spec")
_drawing = threading.Lock()  # who wants what is being drawn waits for it


def kept_png(report: RunReport) -> bytes:
    """The PNG of :func:`tasks.report.pareto_plot.pareto_png`, drawn or as it was drawn for an earlier run.

    Raises:
        OSError: the stack's folder cannot be written.
    """
    return _kept(report, "png")


def kept_svg(report: RunReport) -> str:
    """The same of :func:`tasks.report.pareto_plot.pareto_svg`."""
    return _kept(report, "svg").decode()


def _kept(report: RunReport, form: Literal["png", "svg"]) -> bytes:
    # What is drawn sees these fields and no others, so that nothing can be missing in the name.
    drawn = RunReport(
        run_id="", status="running", started=datetime.min.replace(tzinfo=UTC), **{n: getattr(report, n) for n in _DRAWN}
    )
    code = closure_hash("tasks.report.pareto_plot")
    key = hash_bytes(b"\n".join((drawn.to_json(), code.encode(), version("matplotlib").encode())))[:24]
    folder = Path(os.environ.get("WINNOW_HOME", ".winnow")).absolute() / "cache"
    place = folder / f"pareto-{report.model}-{key}.{form}"
    with _drawing:
        if place.exists():
            return place.read_bytes()
        plot = _draw(drawn, form)
        if folder.parent.is_dir():
            folder.mkdir(exist_ok=True)
            partial = folder / f".{place.name}-{os.getpid()}"
            partial.write_bytes(plot)
            for old in folder.glob(f"pareto-{report.model}-{'?' * len(key)}.{form}"):
                old.unlink(missing_ok=True)
            partial.replace(place)
    return plot


def _draw(report: RunReport, form: Literal["png", "svg"]) -> bytes:
    from tasks.report import pareto_plot

    return pareto_plot.pareto_png(report) if form == "png" else pareto_plot.pareto_svg(report).encode()
