"""What the end of a run needs, imported while its stages compute in processes of their own."""

from __future__ import annotations

import importlib
import threading

from tasks.running.machine_lock import machine_lock
from tasks.running.stage_cache import planning

_MODULES = ("matplotlib.backends.backend_agg", "matplotlib.figure", "flows.commands.result_table")
_begun = threading.Event()


def import_ahead() -> None:
    """Import what draws the report, in the background. Once per process.

    To be called when the first process has done its work: until then the machine has enough to do. Not while anybody
    measures, since importing takes a whole core.
    """
    if planning.get() is None and not _begun.is_set():
        _begun.set()
        threading.Thread(target=_import, name="import-ahead", daemon=True).start()


def _import() -> None:
    with machine_lock(exclusive=False):
        for module in _MODULES:
            importlib.import_module(module)
