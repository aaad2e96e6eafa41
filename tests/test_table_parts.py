"""Tables in many files: the same splits however the rows are filed, and a memory that does not grow with them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from patience import PATIENCE

from tasks.readers import source_parts
from tasks.readers.content import row_hashes
from tasks.readers.sources import fingerprint
from tasks.readers.splitting import FRACTIONS
from tasks.running.errors import DataReadError
from tasks.running.splits import SPLITS, TARGET
from tasks.workloads import table_parts
from tasks.workloads.tabular import Tabular

HERE = Path(__file__).parent


def people(rows: int = 3000, seed: int = 0) -> pd.DataFrame:
    """Numbers with gaps, whole numbers, texts of which some are empty, and a text to predict."""
    random = np.random.default_rng(seed)
    size = random.normal(size=rows).round(3)
    size[random.random(rows) < 0.05] = np.nan
    return pd.DataFrame(
        {
            "size": size,
            "age": random.integers(0, 90, rows),
            "town": random.choice(["Ulm", "Bonn", "Kiel", ""], rows),
            "late": random.choice(["no", "yes", "perhaps"], rows),
        }
    )


def filed(folder: Path, frame: pd.DataFrame, files: int, *, kind: str = "parquet", **arguments: Any) -> Tabular:
    """The rows in so many files of about one size."""
    folder.mkdir()
    for number, rows in enumerate(np.array_split(np.arange(len(frame)), files)):
        part, name = frame.iloc[rows], folder / f"part-{number:03}.{kind}"
        if kind == "jsonl":
            part.to_json(name, orient="records", lines=True)
        elif kind == "csv":
            part.to_csv(name, index=False)
        else:
            part.to_parquet(name, index=False, row_group_size=100)
    return Tabular(f"{folder}/*.{kind}", **{"target": "late", **arguments})


def held(workload: Tabular) -> dict[str, bytes]:
    return {f"{s}.{n}": v.tobytes() for s, columns in workload.splits().items() for n, v in columns.items()}


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and partitions of some rows, so that there are many of each."""
    monkeypatch.setattr(source_parts, "_BLOCK_BYTES", 1 << 12)
    monkeypatch.setattr(table_parts, "_PART_BYTES", 1 << 14)


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("target", ["late", "age", "size"])  # classes by name, by number, a number to predict
def test_one_file_or_twenty_in_any_order_give_the_same(target: str, tmp_path: Path) -> None:
    frame = people().dropna()
    mixed = frame.sample(frac=1, random_state=3)
    one, many = (
        filed(tmp_path / name, rows, files, target=target)
        for name, rows, files in (("one", frame, 1), ("many", mixed, 20))
    )
    assert held(one) == held(many)
    assert one.known() == many.known()
    assert len(list(one.partitions(tmp_path) or ())) > 3


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_the_kind_of_the_files_changes_nothing(kind: str, tmp_path: Path) -> None:
    frame = people(600)
    assert held(filed(tmp_path / kind, frame, 3, kind=kind)) == held(filed(tmp_path / "parquet", frame, 2))


def test_a_row_stays_in_its_split_whatever_other_rows_there_are(tmp_path: Path) -> None:
    frame = people(4000)
    all_of = filed(tmp_path / "all", frame, 4).splits()
    some = filed(tmp_path / "some", frame[:1500], 1).splits()
    homes = {split: set(row_hashes(columns).tolist()) for split, columns in all_of.items()}
    assert sum(map(len, homes.values())) == len(set.union(*homes.values())), "equal rows are in one split"
    for split, columns in some.items():
        assert set(row_hashes(columns).tolist()) <= homes[split]
    for split, share in FRACTIONS.items():
        assert len(all_of[split][TARGET]) == pytest.approx(4000 * share, rel=0.15)
    other = filed(tmp_path / "other", frame, 1, seed=1).splits()
    assert set(row_hashes(other["train"]).tolist()) != homes["train"]


@pytest.mark.usefixtures("small_steps")
def test_partitions_are_the_splits_in_parts_and_know_their_rows(tmp_path: Path) -> None:
    frame = people(1000).fillna({"size": 0.5})
    workload = filed(tmp_path / "files", frame, 3)
    whole, parts = workload.splits(), list(workload.partitions(tmp_path / "rows") or ())
    for split in SPLITS:
        for name, values in whole[split].items():
            np.testing.assert_array_equal(np.concatenate([part[split][name] for part in parts]), values)
    labels = workload.labels()
    assert labels == ["no", "perhaps", "yes"]
    for part in parts:
        for split, columns in part.items():
            rows = frame.iloc[part.source_rows[split]]
            assert [labels[number] for number in columns[TARGET]] == rows["late"].tolist()
            np.testing.assert_array_equal(columns["features"][:, :2], rows[["size", "age"]].to_numpy())
    assert [bool(part.reading.facts) for part in parts] == [True] + [False] * (len(parts) - 1)


def test_scales_and_classes_are_those_of_train_and_travel_as_json(tmp_path: Path) -> None:
    workload = filed(tmp_path / "files", people(), 5, task="regression", target="age")
    train = {name: values.astype(np.float64) for name, values in workload.splits()["train"].items()}
    known = json.loads(json.dumps(workload.known()))
    assert known["mean"] == pytest.approx([np.nanmean(train["features"][:, 0])])
    assert known["deviation"] == pytest.approx([np.nanstd(train["features"][:, 0])])
    assert (known["target_mean"], known["target_deviation"]) == pytest.approx(
        (train[TARGET].mean(), train[TARGET].std())
    )
    told = Tabular(f"{tmp_path}/gone/*.parquet", "age")  # whoever trains reads no files
    told.recall(known)
    assert (told.labels(), told.features) == (None, workload.features)
    assert told.categories == workload.categories == {"town": ["Bonn", "Kiel", "Ulm"], "late": ["no", "perhaps", "yes"]}


def test_rows_without_a_target_are_refused_or_left_out(tmp_path: Path) -> None:
    frame = people(900)
    frame.loc[[3, 500], "late"] = None
    with pytest.raises(DataReadError, match=r"part-000.parquet: 1 row \(3\) of 450 have no 'late'"):
        filed(tmp_path / "refused", frame, 2).splits()
    workload = filed(tmp_path / "dropped", frame, 2, unlabelled="drop")
    assert sum(len(columns[TARGET]) for columns in workload.splits().values()) == 898
    first = next(iter(workload.partitions(tmp_path / "rows") or ()))
    assert first.reading.findings == (f"{tmp_path}/dropped/*.parquet: 2 rows without a target were left out",)


def broken(what: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    first, second = people(300), people(300, seed=1)
    if what == "another column":
        second = second.rename(columns={"age": "years"})
    elif what == "text among numbers":
        second["age"] = "old"
    elif what == "numbers among texts":
        second["town"] = 7
    elif what == "another target":
        second["late"] = 1
    elif what == "too many texts":
        second["town"] = [f"t{number}" for number in range(300)]
        first["town"] = [f"u{number}" for number in range(300)]
    else:
        first, second = first[:2], second[:2]
    return first, second


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("another column", r"b.parquet: the columns 'age', 'years' are in some files"),
        ("text among numbers", r"b.parquet: age holds text, and numbers in the files before"),
        ("numbers among texts", r"b.parquet: town holds numbers, and text in the files before"),
        ("another target", r"b.parquet: the target holds numbers, and text in the files before"),
        ("too many texts", r"column 'town' has \d+ different texts, at most 100 can be categories"),
        ("too few rows", r"4 rows are too few to divide: .* would be empty"),
    ],
)
def test_files_that_do_not_fit_each_other_are_named(what: str, says: str, tmp_path: Path) -> None:
    for name, frame in zip("ab", broken(what), strict=True):
        frame.to_parquet(tmp_path / f"{name}.parquet", index=False)
    with pytest.raises(DataReadError, match=says):
        Tabular(f"{tmp_path}/*.parquet", "late").splits()
    with pytest.raises(DataReadError, match="names no file; the star stands for"):
        Tabular(f"{tmp_path}/*.csv", "late").splits()


def test_a_changed_added_or_renamed_file_is_noticed(tmp_path: Path) -> None:
    def found() -> dict[str, str]:
        return fingerprint({"source": "d/part*.csv", "note": "2 * 3"}, tmp_path)

    (tmp_path / "d").mkdir()
    seen = [found()]
    assert seen == [{}]
    for name, text in (("part1.csv", "a\n1\n"), ("part2.csv", "a\n2\n"), ("part2.csv", "a\n3\n"), ("other.csv", "a")):
        (tmp_path / "d" / name).write_text(text)
        seen.append(found())
    assert len({json.dumps(one) for one in seen}) == 4 and seen[-1] == seen[-2], "a file that does not fit is none"
    (tmp_path / "d" / "part2.csv").rename(tmp_path / "d" / "part3.csv")
    assert found() not in seen


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "times"), [("rows", 20), ("pictures", 7), ("letters", 3)])
def test_many_times_the_memory_that_there_is(kind: str, times: int, tmp_path: Path) -> None:
    """The rows take many times what the process may take besides its libraries; read at once they do not fit."""
    command = [sys.executable, str(HERE / "parts_memory_script.py"), kind, str(tmp_path)]
    # Arrow's own allocators take address space ahead, which would count.
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "ARROW_DEFAULT_MEMORY_POOL": "system"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["data"] >= times * told["limit"]
    assert "MemoryError" in told["whole"], "the limit holds"
    assert told["rows"] == told["stored"]
