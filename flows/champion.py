"""The champion a run has to compare itself with: the one the ledger names when the run begins to choose."""

from __future__ import annotations

from dataclasses import dataclass

from flows.lineage import Made
from flows.ongoing_run import OngoingRun
from model_registry.cpu_class import cpu_class
from model_registry.ledger import Entry, Ledger
from model_registry.variant import Variant
from tasks.evidence.decision import Decision
from tasks.running.errors import GateFailed


@dataclass(frozen=True)
class StandingChampion:
    """The ledger's entry, and the variant it released; None where it cannot be compared with here."""

    entry: Entry
    variant: Variant | None


def standing_champion(run: OngoingRun, made: Made) -> StandingChampion | None:
    """The model's champion; None where nothing was released yet.

    Raises:
        LedgerCorrupt, ObjectMissing: the ledger or the champion's manifest cannot be read.
    """
    entry = Ledger(run.store).champion(run.job.model)
    if entry is None:
        return None
    variant = run.store.load_variant(entry.digest)
    if not comparable(variant, made.variants[made.baseline.digest]):
        why = "takes other inputs or gives other outputs than these variants"
    elif variant.runtime.cpu_class not in (None, cpu_class()):
        why = f"is for CPUs of the class {variant.runtime.cpu_class}, and this one is {cpu_class()}"
    elif not all(run.store.has_blob(file) for file in variant.files):
        why = "is no longer whole in the store"
    else:
        return StandingChampion(entry, variant)
    run.note(f"champion version {entry.to_version} {why}; the variants were compared with the baseline alone")
    return StandingChampion(entry, None)


def comparable(champion: Variant, baseline: Variant) -> bool:
    """Whether both answer the same question: same inputs, and outputs of the same form."""
    return champion.inputs == baseline.inputs and [o.shape for o in champion.outputs] == [
        o.shape for o in baseline.outputs
    ]


def refused_decision(refusal: GateFailed) -> Decision | None:
    """What the gates found before they refused; None where they had nothing to look at."""
    found = refusal.details.get("decision")
    return Decision.model_validate(found) if found else None
