"""How many decisions a test split has served: what is tried until it passes has seen the split."""

from __future__ import annotations

from model_registry.manifest import FileEntry, canonical_json, hash_bytes
from model_registry.store import Store
from model_registry.variant import Record
from tasks.evidence.decision import Decision


class SplitUse(Record):
    """``test-uses/<split>/<decision>.json``: a decision about other variants, or by other limits, than those before."""

    run_id: str
    model: str
    chosen: str
    status: str


def note_use(store: Store, split: FileEntry, decision: Decision, *, run_id: str, model: str) -> int:
    """Note the decision, once however often it is taken again; the number of decisions that the split has served.

    It is another one where others were asked, or held to other limits on what the split shows: not where only the size
    or the objective differs.
    """
    asked = [member.digest for member in decision.sequence if member.verdict != "not asked"] or [decision.chosen]
    held = [(gate.gate, gate.limit) for gate in decision.gates if gate.unit in ("loss", "metric")]
    key = hash_bytes(canonical_json({"asked": asked, "held": held}))
    folder = f"test-uses/{split.sha256}/"
    use = SplitUse(run_id=run_id, model=model, chosen=decision.chosen, status=decision.status)
    store.create_record(f"{folder}{key}.json", use.to_json())
    return len(store.list_records(folder))


def worn_text(decisions: int) -> str:
    """What that means from the second decision on; '' for the first."""
    if decisions < 2:
        return ""
    return (
        f"this test split has served {decisions} decisions, and its bounds hold for the first alone: what is tried "
        "until it passes has seen the split. Bring one that no run has seen before a release that counts"
    )
