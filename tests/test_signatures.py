"""The pairs of the order-matters benchmark: nothing but the pair tells which description is whose."""

from __future__ import annotations

from collections import Counter

from benchmarks.text.signatures_workload import Signatures
from tasks.running.splits import SPLITS, TARGET


def test_each_text_stands_once_under_each_label_and_in_one_split_only() -> None:
    read = Signatures(packages=("networkx",), functions=200).read()
    places = dict[str, str]()
    for split in SPLITS:
        rows = [*zip(*(read[split][name].tolist() for name in ("signature", "description", TARGET)), strict=True)]
        assert len(rows) >= 8 and len(set(rows)) == len(rows)
        for column in (0, 1):
            counts = Counter((row[column], row[2]) for row in rows)
            assert set(counts.values()) == {1}
            own, other = ({text for text, label in counts if label == name} for name in ("own", "other"))
            assert own == other
            for text in own:
                assert places.setdefault(text, split) == split
        pairs = {row[:2] for row in rows if row[2] == "own"}
        assert pairs.isdisjoint(row[:2] for row in rows if row[2] == "other")
    assert sum(len(read[split][TARGET]) for split in SPLITS) <= 400
