"""What became of a run's release, by the ledger: it decides, whatever the run itself lived to write."""

from __future__ import annotations

from model_registry.ledger import Entry, Ledger
from model_registry.store import Store
from tasks.report.run_report import RunReport


def entry_of_run(store: Store, report: RunReport) -> Entry | None:
    """The ledger entry that the run made, pending, committed or aborted; None for none.

    Raises:
        LedgerCorrupt, StoreUnavailable: the ledger cannot be read.
    """
    for entry in reversed(Ledger(store).history(report.model)):
        ours = entry.kind == "release" and entry.by == report.owner and entry.at >= report.started
        if ours and report.chosen in (None, entry.digest):  # None: it died before it said what it chose
            return entry
    return None
