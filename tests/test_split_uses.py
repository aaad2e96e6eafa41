"""A test split that decides again and again: the uses are counted, and told from the second on."""

from __future__ import annotations

from measurements import decided, digits_measurements

from model_registry.manifest import FileEntry
from model_registry.store import Store
from tasks.evidence.split_uses import note_use, worn_text


def test_a_decision_counts_once_for_its_split_and_the_second_one_is_told(store: Store) -> None:
    baseline, first, second, *_ = digits_measurements()
    split = FileEntry(path="test.npz", sha256="7" * 64, size=1)

    def noted(chosen: str, split: FileEntry = split) -> int:
        variant = next(m for m in (first, second) if m.name == chosen)
        return note_use(store, split, decided(variant, baseline, passed=True), run_id="r", model="m")

    assert noted(first.name) == noted(first.name) == 1, "taken again, it is the same decision"
    assert worn_text(1) == ""
    other = decided(first, baseline, passed=True)
    renamed = other.model_copy(update={"reason": "the smallest, not the fastest", "front": (first.digest,)})
    assert note_use(store, split, renamed, run_id="again", model="m") == 1, "the same question to the same variant"
    limits = tuple(g.model_copy(update={"limit": g.limit / 2}) if g.unit == "loss" else g for g in other.gates)
    assert note_use(store, split, other.model_copy(update={"gates": limits}), run_id="r", model="m") == 2
    assert noted(second.name) == 3
    assert "has served 3 decisions" in worn_text(3)
    assert noted(first.name, split.model_copy(update={"sha256": "8" * 64})) == 1
