"""What the end of a run needs, prepared while its stages compute in processes of their own."""

from __future__ import annotations

import importlib
import threading

from tasks.report.kept_plot import kept_png, kept_svg
from tasks.report.run_report import RunReport
from tasks.running.machine_lock import machine_lock
from tasks.running.stage import Outcome
from tasks.running.stage_plan import planning

_MODULES = ("matplotlib.backends.backend_agg", "matplotlib.figure", "flows.commands.result_table")
_begun = threading.Event()
_one_at_a_time = threading.Lock()
"""Two threads that import the same library at once can find a half of it."""


def import_ahead(*made: Outcome) -> None:
    """Import what draws the report, in the background, if any of these was computed. Once per process.

    A run with nothing new has nothing to draw. To be called when a stage has ended: until the first one has, the
    machine has enough to do. Not while anybody measures, since importing takes a whole core.
    """
    if any(outcome.status == "computed" for outcome in made) and planning.get() is None and not _begun.is_set():
        _begun.set()
        threading.Thread(target=_import, name="import-ahead", daemon=True).start()


def draw_ahead(report: RunReport) -> None:
    """Draw the plots in the background while MLflow is told of the variants: nothing of them changes any more."""
    threading.Thread(target=_draw, args=(report,), name="draw-ahead", daemon=True).start()


def _import() -> None:
    with machine_lock(exclusive=False), _one_at_a_time:
        for module in _MODULES:
            importlib.import_module(module)


def _draw(report: RunReport) -> None:
    with machine_lock(exclusive=False), _one_at_a_time:
        kept_svg(report)
        kept_png(report)
