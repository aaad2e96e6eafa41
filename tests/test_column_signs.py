"""Columns that float32 rounds away, that number the rows, that give the answer: found, and sound ones left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from tasks.data.column_signs import SIGNS, column_frame
from tasks.running.splits import Columns
from tasks.workloads.sklearn_table import SklearnTable

ROWS = {"train": 400, "calibration": 50, "validation": 100, "test": 100}


def signs(columns: dict[str, Any], target: Any, *, own: bool = False) -> dict[str, dict[str, str]]:
    """The signs by column, of columns over all rows."""
    splits: dict[str, Columns] = {}
    start = 0
    for name, rows in ROWS.items():
        here = slice(start, start + rows)
        splits[name] = {**{c: np.asarray(v)[here] for c, v in columns.items()}, "target": np.asarray(target)[here]}
        start += rows

    def own_frame(split: Columns) -> pd.DataFrame | None:
        return pd.DataFrame({name: split[name] for name in columns}) if own else None

    frame = column_frame(splits, own_frame)
    return {
        line["column"]: {sign: line[sign] for sign in SIGNS if isinstance(line[sign], str)}
        for line in frame.to_dict("records")
        if any(isinstance(line[sign], str) for sign in SIGNS)
    }


RANDOM = np.random.default_rng(0)
TOTAL = sum(ROWS.values())
NOISE = RANDOM.normal(0, 1, (TOTAL, 3))
CLASSES = (NOISE[:, 0] + RANDOM.normal(0, 1, TOTAL) > 0).astype(int)


def test_sound_columns_have_no_sign() -> None:
    whole = RANDOM.permutation(100_000)[:TOTAL]  # all different, but no numbers of rows
    sound = {"noise": NOISE, "whole": whole, "large": 1e12 * NOISE[:, 1], "far": 1e6 + NOISE[:, 2]}
    assert signs(sound, CLASSES) == {}


@pytest.mark.parametrize("name", ["breast_cancer", "wine", "iris", "diabetes"])
def test_real_tables_have_no_sign(name: Any) -> None:
    workload = SklearnTable(name)
    frame = column_frame(workload.splits(), workload.frame)
    assert frame[list(SIGNS)].isna().all(axis=None)


def test_times_in_milliseconds_are_rounded_away() -> None:
    stamp = 1.7e12 + RANDOM.integers(0, 600_000, TOTAL)
    found = signs({"noise": NOISE, "stamp": stamp}, CLASSES)
    train = stamp[: ROWS["train"]]
    different, left = len(np.unique(train)), len(np.unique(train.astype(np.float32)))
    assert left < 7 and found == {"stamp": {"rounded": f"{different} different values, {left} left in float32"}}
    some = np.where(RANDOM.random(TOTAL) < 0.1, 0, stamp)  # 0 where it is not known
    assert "rounded" in signs({"noise": NOISE, "stamp": some}, CLASSES)["stamp"]
    assert signs({"noise": NOISE}, stamp)["target"] == found["stamp"]


@pytest.mark.parametrize("shift", [0, 1, 1000])
def test_running_numbers_are_found_in_any_order(shift: int) -> None:
    number = RANDOM.permutation(TOTAL) + shift
    says = f"{TOTAL} different whole numbers in as many rows, from {shift} to {shift + TOTAL - 1}"
    assert signs({"noise": NOISE, "id": number}, CLASSES) == {"id": {"counts rows": says}}
    assert signs({"noise": NOISE, "id": number.astype(float)}, CLASSES) == {"id": {"counts rows": says}}


def test_names_of_rows_are_found() -> None:
    named = signs({"x": NOISE[:, 0], "name": [f"p{i}" for i in range(TOTAL)]}, CLASSES, own=True)
    assert named["name"]["counts rows"] == f"{TOTAL} different texts in as many rows"


@pytest.mark.parametrize("kind", ["numbers", "texts", "few values"])
def test_a_column_that_is_the_answer_is_found(kind: str) -> None:
    column: Any = {
        "numbers": CLASSES + RANDOM.normal(0, 0.05, TOTAL),
        "texts": np.where(CLASSES == 1, "paid", "open"),
        "few values": CLASSES * 2 + RANDOM.integers(0, 2, TOTAL),
    }[kind]
    found = signs({"x": NOISE[:, 0], "y": NOISE[:, 1], "leak": column}, CLASSES, own=kind == "texts")
    assert set(found) == {"leak"}
    assert found["leak"]["gives the answer"].startswith("alone 100.0% right on validation, the next best column ")


def test_a_column_far_above_the_others_is_found() -> None:
    mostly = np.where(RANDOM.random(TOTAL) < 0.06, 1 - CLASSES, CLASSES)
    (name,) = found = signs({"y": NOISE[:, 1], "z": NOISE[:, 2], "leak": mostly}, CLASSES)
    assert name == "leak" and "alone 9" in found["leak"]["gives the answer"]


def test_a_frequent_class_alone_is_no_sign() -> None:
    rare = (RANDOM.random(TOTAL) < 0.01).astype(int)
    assert signs({"noise": NOISE}, rare) == {}


def test_a_number_that_explains_the_target_is_found() -> None:
    price = np.exp(NOISE[:, 0])
    found = signs({"y": NOISE[:, 1], "price_in_cents": 100 * price}, price)
    assert "of the ranks' variance explained on validation" in found["price_in_cents"]["gives the answer"]
