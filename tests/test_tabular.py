"""Tables as people bring them: what is taken for what, left out, refused, and told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tasks.data.materialise import storable
from tasks.readers.content import row_hashes
from tasks.readers.splitting import Divided
from tasks.running.errors import DataReadError
from tasks.running.splits import SPLITS, TARGET
from tasks.workloads.tabular import Tabular


def table(folder: Path, frame: pd.DataFrame, target: str, *, index: bool = False, **arguments: Any) -> Tabular:
    """The frame as a CSV file, read."""
    frame.to_csv(folder / "t.csv", index=index)
    return Tabular(str(folder / "t.csv"), target, **arguments)


def divided(workload: Tabular) -> Divided:
    splits = workload.splits()
    assert isinstance(splits, Divided)
    return splits


def test_rows_that_differ_only_in_what_is_dropped_stay_together(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    frame = pd.DataFrame(
        {"ticket": np.arange(900), "hour": random.integers(0, 6, 900), "kind": random.choice(list("abc"), 900)}
    ).assign(late=random.integers(0, 2, 900))
    splits = storable(table(tmp_path, frame, "late", drop=["ticket"]).splits())
    seen = [set(row_hashes(splits[name]).tolist()) for name in SPLITS]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 18


def test_texts_that_train_does_not_have_stay_different_rows(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": np.arange(200) % 20, "town": [f"t{i % 90:02}" for i in range(200)]}).assign(
        y=np.arange(200) % 2
    )
    splits = divided(table(tmp_path, frame, "y"))
    seen = [set(row_hashes(splits[name]).tolist()) for name in SPLITS]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 180


@pytest.mark.parametrize("kind", ["text", "whole numbers", "numbers"])
def test_rows_without_a_target_are_refused_or_left_out_with_their_number(kind: str, tmp_path: Path) -> None:
    values: Any = {
        "text": pd.Series(["sick", "well"] * 100, dtype=object),
        "whole numbers": pd.Series(np.arange(200) % 3, dtype="Int64"),
        "numbers": pd.Series(np.arange(200) / 7),
    }[kind]
    values[[3, 40, 41]] = None
    frame = pd.DataFrame({"x": np.arange(200), "state": values})
    with pytest.raises(
        DataReadError, match=r"3 rows \(3, 40, 41\) of 200 have no 'state' to predict; .*unlabelled: drop"
    ):
        table(tmp_path, frame, "state").splits()
    workload = table(tmp_path, frame, "state", unlabelled="drop")
    splits = divided(workload)
    assert workload.labels() == {"text": ["sick", "well"], "whole numbers": ["0", "1", "2"], "numbers": None}[kind]
    assert sum(len(columns[TARGET]) for columns in splits.values()) == 197
    for name in SPLITS:  # findings name the row of the file
        assert (splits.source_rows[name] == splits[name]["features"][:, 0]).all()
    assert any(
        "3 rows (3, 40, 41) of 200 have no 'state' to predict; they were left out" in f for f in splits.reading.findings
    )


def test_an_index_that_pandas_wrote_is_left_out_and_reported(tmp_path: Path) -> None:
    frame = pd.DataFrame({"acid": np.arange(200) % 11, "quality": ["good", "poor"] * 100})
    frame.index = frame.index + 1
    for read in ("nameless", "Unnamed: 0"):
        if read == "Unnamed: 0":  # saved with its index, read, and saved again
            frame = pd.read_csv(tmp_path / "t.csv")
        workload = table(tmp_path, frame, "quality", index=read == "nameless")
        assert workload.features == ["acid"]
        (finding,) = divided(workload).reading.findings
        assert f"the column {read.replace('nameless', '')!r} is an index of the rows" in finding


def test_a_column_without_a_name_that_is_no_index_is_refused(tmp_path: Path) -> None:
    frame = pd.DataFrame({"": np.arange(200) % 7 + 0.5, "quality": ["good", "poor"] * 100})
    with pytest.raises(DataReadError, match=r"a column has no name .* first values are '0.5', '1.5', '2.5'"):
        table(tmp_path, frame, "quality").splits()


def test_a_nullable_table_with_categories_and_dates_is_learned_from(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "count": pd.array(random.integers(0, 9, 900), dtype="Int64"),
            "share": np.where(random.random(900) < 0.05, np.inf, random.random(900)),
            "kind": pd.Categorical(random.choice(["x", "y"], 900)),
            "when": pd.Timestamp("2024-01-01") + pd.to_timedelta(random.integers(0, 400, 900), "D"),
            "flag": random.random(900) > 0.5,
            "label": pd.array(random.integers(0, 2, 900), dtype="Int64"),
        }
    )
    frame.loc[::20, "count"] = pd.NA
    frame.to_parquet(tmp_path / "t.parquet", index=False)
    workload = Tabular(str(tmp_path / "t.parquet"), "label")
    splits = storable(workload.splits())
    rows = np.concatenate([columns["features"] for columns in splits.values()])
    assert workload.features == ["count", "share", "kind", "when", "flag"] and list(workload.categories) == ["kind"]
    assert np.isnan(rows).sum(axis=0).tolist() == [45, np.isinf(frame["share"]).sum(), 0, 0, 0]
    assert rows[:, 3].min() >= 19723 and len(np.unique(rows[:, 3])) == frame["when"].nunique()


def test_an_infinite_target_is_none(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": np.arange(200), "y": np.where(np.arange(200) == 7, np.inf, np.arange(200) / 7)})
    with pytest.raises(DataReadError, match=r"1 row \(7\) of 200 have no 'y' to predict"):
        table(tmp_path, frame, "y").splits()


def test_what_was_understood_is_told(tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": np.arange(200), "x": np.arange(200) / 4, "when": "2024-05-01", "y": [0, 1] * 100})
    frame.to_csv(tmp_path / "t.csv", index=False, sep=";")
    workload = Tabular(str(tmp_path / "t.csv"), "y", drop=["id"])
    assert divided(workload).reading.facts == (
        "t.csv: 200 rows. Whole numbers: 'id', 'y'. Numbers: 'x'. Dates and times, as days since 1970-01-01: 'when'.",
        "t.csv: fields separated by ';', decimal mark '.'.",
        f"{tmp_path / 't.csv'}: left out as asked: 'id'.",
    )
    with pytest.raises(DataReadError, match="or what separates the fields by `delimiter`"):
        Tabular(str(tmp_path / "t.csv"), "y", delimiter=",").splits()
