"""Division into splits, content hashes and the bytes that are stored."""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.data.materialise import npz_bytes, storable
from tasks.data.repeats import find_repeats
from tasks.readers.content import row_hashes
from tasks.readers.splitting import FRACTIONS, assign, complete, split_columns, strata
from tasks.running.errors import DataReadError
from tasks.running.splits import SPLITS, Columns

GROUPS = st.lists(st.tuples(st.integers(0, 40), st.sampled_from("abc")), min_size=1, max_size=200)


@given(GROUPS, st.integers(0, 5), st.randoms(use_true_random=False))
@settings(max_examples=80, deadline=None)
def test_assign_divides_exactly_and_keeps_groups_together(
    rows: list[tuple[int, str]], seed: int, random: Random
) -> None:
    groups = np.array([f"g{group}" for group, _ in rows])
    stratum = np.array([name for _, name in rows])
    chosen = assign(groups, stratum, seed=seed, fractions=FRACTIONS)
    assert sorted(row for members in chosen.values() for row in members.tolist()) == list(range(len(rows)))
    homes = {
        group: {name for name, m in chosen.items() if group in set(groups[m].tolist())} for group in groups.tolist()
    }
    assert all(len(home) == 1 for home in homes.values())
    largest = max(Counter(groups.tolist()).values())
    for name, fraction in FRACTIONS.items():
        # a group is handed over whole, so a split may be off by the largest of them, and by what three others took
        assert abs(len(chosen[name]) - fraction * len(rows)) <= largest * len(FRACTIONS)

    order = list(range(len(rows)))
    random.shuffle(order)
    again = assign(groups[order], stratum[order], seed=seed, fractions=FRACTIONS)
    for name in FRACTIONS:
        assert set(groups[order][again[name]].tolist()) == set(groups[chosen[name]].tolist())


@given(st.lists(st.integers(8, 60), min_size=2, max_size=6), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_every_class_is_divided_by_the_shares(sizes: list[int], seed: int) -> None:
    target = np.concatenate([np.full(size, number) for number, size in enumerate(sizes)])
    columns: Columns = {"x": np.arange(len(target)), "target": target}
    splits = split_columns(columns, seed=seed)
    for number, size in enumerate(sizes):
        for name, fraction in FRACTIONS.items():
            assert abs((splits[name]["target"] == number).sum() - fraction * size) <= 2


def test_another_seed_is_another_division_and_the_same_seed_the_same() -> None:
    columns: Columns = {"x": np.arange(100), "target": np.arange(100) % 4}
    first, same, other = (split_columns(columns, seed=seed)["test"]["x"].tolist() for seed in (0, 0, 1))
    assert first == same != other


def test_numbers_are_stratified_by_size() -> None:
    values = np.random.default_rng(0).normal(size=400)
    splits = split_columns({"x": np.arange(400), "target": values})
    assert set(strata(values).tolist()) == {str(i) for i in range(10)}
    for name in SPLITS:
        assert abs(float(np.median(splits[name]["target"].astype(np.float64))) - float(np.median(values))) < 0.25


def test_equal_inputs_stay_in_one_split() -> None:
    x = np.repeat(np.arange(50), 4)
    splits = split_columns({"x": x, "target": np.arange(200) % 3})
    seen = [set(splits[name]["x"].tolist()) for name in SPLITS]
    assert sum(len(s) for s in seen) == len(set.union(*seen)) == 50


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(DataReadError, match=r"2 rows \(2 different ones\) are too few"):
        split_columns({"x": np.arange(2), "target": np.arange(2)})


def test_missing_splits_are_taken_out_of_train() -> None:
    def part(start: int, rows: int) -> Columns:
        return {"x": np.arange(start, start + rows), "target": np.arange(rows) % 2}

    splits = complete({"train": part(0, 160), "test": part(1000, 20)})
    assert splits["test"]["x"].tolist() == list(range(1000, 1020)) == (splits.source_rows["test"] + 1000).tolist()
    assert [len(splits[name]["x"]) for name in SPLITS] == [110, 20, 30, 20]
    with pytest.raises(DataReadError, match="no train"):
        complete({"test": part(0, 10)})
    assert complete(splits) == splits


def test_divided_splits_know_where_their_rows_come_from() -> None:
    columns: Columns = {"x": np.arange(100, 200), "target": np.arange(100) % 2}
    splits = split_columns(columns)
    for name in SPLITS:
        assert (splits.source_rows[name] + 100 == splits[name]["x"]).all()
    test: Columns = {"x": np.arange(20), "target": np.arange(20) % 2}
    files = {"train": [f"{i}.png" for i in range(100)]}
    both = complete({"train": columns, "test": test}, source_rows=files)
    assert both.source_rows["test"].tolist() == list(range(20))
    for name in ("train", "calibration", "validation"):
        assert both.source_rows[name].tolist() == [f"{x - 100}.png" for x in both[name]["x"].tolist()]


def test_equal_rows_have_equal_hashes_and_others_not() -> None:
    x = np.array([[1.0, 2.0], [1.0, 2.0], [1.0, 2.5]], dtype=np.float32)
    hashes = row_hashes({"x": x, "target": np.array([0, 1, 2])})
    assert hashes[0] == hashes[1] != hashes[2]
    assert hashes[0] != row_hashes({"x": x.astype(np.float16), "target": np.arange(3)})[0]
    assert hashes[0] != row_hashes({"y": x, "target": np.arange(3)})[0]


def test_repeats_say_where_the_like_is() -> None:
    splits: dict[str, Columns] = {
        "train": {"x": np.array([1, 2, 1, 3]), "target": np.array([0, 0, 0, 0])},
        "test": {"x": np.array([4, 3, 2]), "target": np.array([0, 1, 0])},
    }
    found = find_repeats(splits)
    assert found["train"].duplicate_of == [None, None, "row 0", None]
    assert found["train"].also_in == [None, "test row 2", None, "test row 1"]
    assert found["test"].also_in == [None, "train row 3", "train row 1"]
    assert found["test"].conflicts_with == [None, "train row 3", None]


def test_stored_bytes_depend_on_the_content_alone() -> None:
    first = npz_bytes({"b": np.arange(3), "a": np.ones((2, 2), dtype=np.float32)})
    second = npz_bytes({"a": np.asfortranarray(np.ones((2, 2), dtype=np.float32)), "b": np.arange(3)})
    assert first == second
    assert first != npz_bytes({"b": np.arange(3), "a": np.zeros((2, 2), dtype=np.float32)})
    with zipfile.ZipFile(io.BytesIO(first)) as plain:
        assert {entry.date_time for entry in plain.infolist()} == {(1980, 1, 1, 0, 0, 0)}, "no trace of the clock"
    with np.load(io.BytesIO(first), allow_pickle=False) as archive:
        assert archive["b"].tolist() == [0, 1, 2]


def test_types_that_models_compute_in() -> None:
    made = storable({"train": {"x": np.array([1.0]), "big": np.array([1], dtype=">i4"), "target": np.array([True])}})[
        "train"
    ]
    assert {name: str(values.dtype) for name, values in made.items()} == {
        "x": "float32",
        "big": "int32",
        "target": "int64",
    }
    with pytest.raises(DataReadError, match=r"column 'x' of test holds text.*column 'y' of test holds text"):
        storable({"test": {"x": np.array(["a"]), "y": np.array([None])}})
    with pytest.raises(DataReadError, match=r"test.x \(0, 3\)"):
        storable({"test": {"x": np.zeros((0, 3))}})


def test_rows_that_are_equal_when_stored_are_equal_before() -> None:
    """The division and the check for leakage look at the same thing."""
    x = np.array([1.0, 1.0 + 1e-12, 0.0, -0.0, np.nan, -np.nan, 2.0])
    hashes = row_hashes({"x": x})
    assert len(set(hashes.tolist())) == 4
    assert (hashes == row_hashes({"x": x.astype(np.float32)})).all()
    rows = 1 + np.repeat(np.arange(100.0), 4) + np.tile([0, 1e-13, 2e-13, 3e-13], 100)
    splits = storable(dict(split_columns({"x": rows, "target": np.arange(400) % 2})))
    seen = [set(columns["x"].tolist()) for columns in splits.values()]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 100
