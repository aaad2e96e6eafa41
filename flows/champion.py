"""The champion a run has to compare itself with: the one the ledger names when the run begins to choose."""

from __future__ import annotations

from dataclasses import dataclass

from flows.lineage import Made
from flows.ongoing_run import OngoingRun
from model_registry.ledger import Entry, Ledger
from model_registry.variant import Variant
from tasks.errors import GateFailed
from tasks.evidence.decision import Decision


@dataclass(frozen=True)
class Champion:
    """The ledger's entry and the variant it released."""

    entry: Entry
    variant: Variant


def standing_champion(run: OngoingRun, made: Made) -> Champion | None:
    """The model's champion; None where nothing was released yet, or where it answers another question.

    Raises:
        LedgerCorrupt, ObjectMissing: the ledger or the champion's manifest cannot be read.
    """
    entry = Ledger(run.store).champion(run.job.model)
    if entry is None:
        return None
    champion = Champion(entry, run.store.load_variant(entry.digest))
    if not comparable(champion.variant, made.variants[made.baseline.digest]):
        run.note(
            f"champion version {entry.to_version} takes other inputs or gives other outputs than these variants; "
            "they were compared with the baseline alone"
        )
        return None
    return champion


def comparable(champion: Variant, baseline: Variant) -> bool:
    """Whether both answer the same question: same inputs, and outputs of the same form."""
    return champion.inputs == baseline.inputs and [o.shape for o in champion.outputs] == [
        o.shape for o in baseline.outputs
    ]


def refused_decision(refusal: GateFailed) -> Decision | None:
    """What the gates found before they refused; None where they had nothing to look at."""
    found = refusal.details.get("decision")
    return Decision.model_validate(found) if found else None
