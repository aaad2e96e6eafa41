"""What each flaw in the data leads to, and the data step in its real process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from model_registry.manifest import FileEntry
from model_registry.store import Store
from model_registry.variant import TensorSpec
from tasks.data import DataSpec, check_data, data_ref, understood
from tasks.data.materialise import storable
from tasks.running.errors import DataCheckFailed, DataReadError, WorkloadError
from tasks.running.splits import SPLITS, Columns, read_split
from tasks.running.stage import Job, Outcome, WorkloadRef
from tasks.running.stage_cache import log_folder
from tasks.running.stage_plan import Plan, planning

if TYPE_CHECKING:
    import flawed_workloads

    from tasks.data.checking import Checked
else:
    import flawed_workloads

# Great Expectations: slow; sre_constants at import, and what its own use of marshmallow and pandas brings.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

HERE = str(Path(__file__).parent)


def checked(flaw: str = "none", **spec: Any) -> Checked:
    """The checks of the sound data with that flaw, in this process."""
    from tasks.data.check_splits import check_splits

    workload = flawed_workloads.Flawed(flaw)
    return check_splits(
        storable(workload.splits()),
        task="classes",
        labels=tuple(workload.labels()),
        own_frame=lambda split: None,
        spec=DataSpec.model_validate(spec).model_dump(mode="json"),
    )


def summary(found: Checked) -> list[tuple[str, str, str, tuple[int, ...]]]:
    return [(f.severity, f.check, f.asset, f.rows) for f in found.findings]


def test_sound_data_meets_every_expectation() -> None:
    found = checked()
    assert found.findings == []
    assert found.passed == 1 + 11 + 3 * 13 + 1  # types; train; three splits that are also compared with train; classes


FLAWS: dict[str, list[tuple[str, str, str, tuple[int, ...]]]] = {
    "nan+column+duplicate+target+missing_class": [
        ("critical", "schema", "types", ()),
        ("critical", "missing", "train", (5,)),
        ("critical", "target", "calibration", (4,)),
        ("critical", "missing", "test", (7,)),
        ("warning", "duplicates", "train", (9, 12)),
        ("warning", "classes", "test", ()),
    ],
    "leak+shape": [
        ("critical", "schema", "types", ()),
        ("critical", "leakage", "train", (17, 20)),
        ("critical", "leakage", "test", (3, 11)),
        ("warning", "conflicts", "train", (17,)),
        ("warning", "conflicts", "test", (3,)),
    ],
    "balance+few": [("critical", "rows", "test", ()), ("warning", "balance", "classes", ())],
    "conflict+bright": [
        ("warning", "duplicates", "train", (1,)),
        ("warning", "conflicts", "train", (0, 1)),
        ("warning", "unfamiliar", "test", tuple(range(10))),
        ("warning", "unfamiliar", "test", tuple(range(10))),
    ],
}


@pytest.mark.parametrize("flaws", FLAWS)
def test_each_flaw_is_found_where_it_is_and_nothing_else(flaws: str) -> None:
    assert summary(checked(flaws)) == FLAWS[flaws]


def test_findings_say_what_rule_and_remedy() -> None:
    texts = {finding.check: str(finding) for finding in checked("leak+shape+missing_class+few").findings}
    assert texts["leakage"] == (
        "leakage: test, also_in: 'No sample is in another split too' does not hold: row 3 (train row 17). "
        "Remedy: keep each sample in one split only: what was trained on cannot measure the result, "
        "or set data.leakage: warn"
    )
    assert "split validation, column image, type float32 [1, 3, 4], type in train float32 [1, 4, 4]" in texts["schema"]
    assert "'Every class occurs' does not hold: none of cat" in texts["classes"]
    assert "'There are at least 10 rows' does not hold: 4" in texts["rows"]


def test_the_spec_says_what_is_looked_at_and_what_stops_the_run() -> None:
    flaws = "nan+leak+duplicate+balance+few"
    assert {f.check for f in checked(flaws).findings} == {
        "missing",
        "leakage",
        "duplicates",
        "conflicts",
        "balance",
        "rows",
    }
    skips = dict.fromkeys(("missing", "leakage", "duplicates", "conflicts"), "skip")
    assert checked(flaws, **skips, max_imbalance=58, min_rows=4).findings == []
    turned = checked(
        flaws, missing="warn", leakage="warn", duplicates="fail", conflicts="skip", balance="skip", min_rows=4
    )
    assert {(f.check, f.severity) for f in turned.findings} == {
        ("missing", "warning"),
        ("leakage", "warning"),
        ("duplicates", "critical"),
    }
    assert checked("bright", range_tolerance=20).findings == []


def test_ranges_set_by_the_user() -> None:
    assert checked(ranges={"image": [0, 1]}).findings == []
    assert [(f.check, f.column, f.count) for f in checked(ranges={"image": [None, 0.5]}).findings] == [
        ("range", "image.max", rows) for rows in flawed_workloads.ROWS.values()
    ]
    with pytest.raises(ValueError, match="swap them"):
        DataSpec.model_validate({"ranges": {"image": [1, 0]}})


def test_what_could_not_run_is_not_called_bad_data() -> None:
    found = checked(ranges={"pixels": [0, 1]})
    assert found.headline == "4 critical checks could not run"
    assert "could not run, the data was not judged" in str(found.findings[0])
    assert "There are ['image.min', 'image.max', 'image.mean', 'image.nonfinite', 'target']" in str(found.findings[0])


def test_a_frame_of_the_workload_is_checked_as_it_is() -> None:
    from tasks.data.check_splits import check_splits

    splits = storable(flawed_workloads.TwoInputs().splits())

    def frame(split: dict[str, Any]) -> pd.DataFrame:
        rows = len(split["target"])
        return pd.DataFrame({"note": ["a", "", *["b"] * (rows - 2)], "size": [1.0, 2.0, np.inf, *[3.0] * (rows - 3)]})

    arguments: dict[str, Any] = {"task": "regression", "labels": None, "spec": DataSpec().model_dump(mode="json")}
    found = check_splits(splits, own_frame=frame, **arguments)
    assert {(f.check, f.column, f.rows) for f in found.findings} == {
        ("missing", "note", (1,)),
        ("missing", "size", (2,)),
    }
    with pytest.raises(WorkloadError, match="returned 5 rows for a split of 60"):
        check_splits(splits, own_frame=lambda split: pd.DataFrame({"x": np.zeros(5)}), **arguments)


def test_signs_of_columns_are_findings_by_name() -> None:
    from tasks.data.check_splits import check_splits

    random = np.random.default_rng(0)
    given: dict[str, Columns] = {}
    start = 1000
    for name, rows in flawed_workloads.ROWS.items():
        target = np.arange(rows) % 2
        given[name] = {
            "stamp": 1.7e12 + random.integers(0, 60_000, rows).astype(np.float64),
            "ticket": np.arange(start, start + rows),
            "state": 3 * target,
            "noise": random.normal(0, 1, rows),
            "target": target,
        }
        start += rows

    def found(**spec: Any) -> Checked:
        settings = DataSpec.model_validate(spec).model_dump(mode="json")
        none: Any = lambda split: None  # noqa: E731
        return check_splits(storable(given), task="classes", labels=None, own_frame=none, spec=settings, given=given)

    told = found(leakage="skip", duplicates="skip", conflicts="skip", unfamiliar="skip").findings
    assert [(f.severity, f.check, f.asset, f.rows) for f in told] == [
        ("critical", "precision", "columns", ()),
        ("warning", "identifiers", "columns", ()),
        ("warning", "revealing", "columns", ()),
    ]
    texts = [str(f) for f in told]
    assert "float32 keeps the different values of every column' does not hold: stamp: 60 different" in texts[0]
    assert "ticket: 140 different whole numbers in as many rows, from 1000 to 1139. Remedy: leave it out if" in texts[1]
    assert "state: alone 100.0% right on validation, the next best column" in texts[2]
    assert texts[0].endswith("or set data.precision: warn") and texts[2].endswith("or set data.revealing: skip")
    skipped = found(precision="skip", identifiers="skip", revealing="skip")
    assert not {f.check for f in skipped.findings} & {"precision", "identifiers", "revealing"}


def test_a_single_class_stops_the_run() -> None:
    from tasks.data.check_splits import check_splits

    splits = {name: {**columns, "target": columns["target"] * 0} for name, columns in flawed_workloads.sound().items()}
    none: Any = lambda split: None  # noqa: E731
    found = check_splits(splits, task="classes", labels=None, own_frame=none, spec=DataSpec().model_dump(mode="json"))
    (finding,) = found.of("critical")
    assert (finding.check, finding.asset) == ("classes", "train")
    assert "'There are two classes or more' does not hold: 1" in str(finding)


def test_the_page_is_self_contained_and_safe() -> None:
    from tasks.data.data_docs import data_docs_page

    page = data_docs_page("<i>m</i>", {"workload": "a & b"}, checked("target"))
    assert page == data_docs_page("<i>m</i>", {"workload": "a & b"}, checked("target")), "the same data, the same page"
    assert "<i>m</i>" not in page and "<b>ant</b>" not in page
    assert "<script" not in page and "http://" not in page and "https://" not in page and "src=" not in page
    assert "Every target is a known class" in page
    assert page.count("<details") == 6 and page.count("<details open") == 1


@pytest.mark.parametrize(("fills", "severity"), [(True, "warning"), (False, "critical")])
def test_missing_values_end_a_run_unless_the_workload_fills_them_in(fills: bool, severity: str) -> None:
    from tasks.data.check_splits import check_splits

    splits = storable(flawed_workloads.Flawed("nan").splits())
    arguments: dict[str, Any] = {"task": "classes", "labels": None, "spec": DataSpec().model_dump(mode="json")}
    found = check_splits(splits, own_frame=lambda split: None, fills_missing=fills, **arguments)
    assert {f.severity for f in found.findings if f.check == "missing"} == {severity}


# -- in its process ---------------------------------------------------------------------------------------------------
def ask(store: Store, path: str, *, folder: str = HERE, spec: DataSpec | None = None, **arguments: Any) -> Outcome:
    workload = WorkloadRef(path=path, arguments=arguments, folder=folder)
    job = Job(run_id="test", model="m", store=store.uri, workload=workload)
    return check_data.task.fn(job, spec or DataSpec())


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "home"))


def test_checked_data_lies_in_the_store_and_is_known_by_content(store: Store) -> None:
    outcome = ask(store, "flawed_workloads:Flawed", flaw="duplicate")
    data = data_ref(outcome)
    assert data.task == "classes" and data.labels == ("<b>ant</b>", "bee", "cat")
    assert {name: (c.dtype, c.shape) for name, c in data.columns.items()} == {
        "image": ("float32", (1, 4, 4)),
        "target": ("int64", ()),
    }
    splits = flawed_workloads.Flawed("duplicate").splits()
    for name in SPLITS:
        assert data.split(name).rows == flawed_workloads.ROWS[name]
        for column, values in read_split(store, data, name).items():
            np.testing.assert_array_equal(values, splits[name][column])
    assert len(outcome.values["warnings"]) == 1 and "row 9 (row 0), row 12 (row 0)" in outcome.values["warnings"][0]
    assert outcome.values["could_not_run"] == []
    page = outcome.file("data_docs.html")
    assert page is not None and store.fetch_bytes(page).startswith(b"<!doctype html>")
    assert {entry.path for entry in outcome.files} == {*(f"splits/{name}.npz" for name in SPLITS), "data_docs.html"}


def test_failed_checks_arrive_with_rows_and_page_and_are_not_cached(store: Store) -> None:
    with pytest.raises(DataCheckFailed, match="1 critical check failed, nothing was trained") as told:
        ask(store, "flawed_workloads:Flawed", flaw="target")
    (failure,) = told.value.details["failures"]
    assert (failure["check"], failure["asset"], failure["rows"], failure["examples"]) == (
        "target",
        "calibration",
        [4],
        ["7"],
    )
    page = store.fetch_bytes(FileEntry.model_validate(told.value.details["data_docs"]))
    assert b"1 critical check failed" in page
    beside = log_folder("test") / "data_docs.html"
    assert str(beside) in str(told.value) and beside.read_bytes() == page
    assert store.list_records("stages/") == []


def test_rows_are_named_as_they_stand_in_the_file(store: Store, tmp_path: Path) -> None:
    lines = [f"{i},{'' if i == 41 else i % 7},{'yes' if i % 2 else 'no'}" for i in range(100)]
    (tmp_path / "t.csv").write_text("a,b,answer\n" + "\n".join(lines) + "\n")
    with pytest.raises(DataCheckFailed, match=r"row \d+ = source row 41 \(missing\)") as told:
        spec = DataSpec(missing="fail")
        ask(store, "tasks.workloads.tabular:Tabular", spec=spec, source=str(tmp_path / "t.csv"), target="answer")
    assert told.value.details["failures"][0]["source_rows"] == ["source row 41"]


def test_what_was_understood_is_in_the_result_and_on_the_page(store: Store, tmp_path: Path) -> None:
    lines = [f"{i};{i},5;{'yes' if i % 2 else 'no'}" for i in range(200)]
    (tmp_path / "t.csv").write_text(";b;answer\n" + "\n".join(lines) + "\n")
    arguments: dict[str, Any] = {"source": str(tmp_path / "t.csv"), "target": "answer"}
    facts = [
        "t.csv: 200 rows. Whole numbers: ''. Numbers: 'b'. Text: 'answer'.",
        "t.csv: fields separated by ';', decimal mark ','.",
        "Rows: train 110, calibration 20, validation 30, test 40.",
        "2 classes: 'no', 'yes'.",
    ]
    outcome = ask(store, "tasks.workloads.tabular:Tabular", **arguments)
    assert outcome.values["reading"] == facts
    assert "the column '' is an index of the rows, as pandas writes it" in outcome.values["warnings"][0]
    assert understood(outcome) == (*facts, *outcome.values["warnings"])
    page = outcome.file("data_docs.html")
    assert page is not None and b"fields separated by &#x27;;&#x27;" in store.fetch_bytes(page)


def test_columns_that_lack_values_in_train_are_known(store: Store) -> None:
    data = data_ref(ask(store, "flawed_workloads:Flawed", flaw="nan", spec=DataSpec(missing="warn")))
    assert {name: column.missing for name, column in data.columns.items()} == {"image": True, "target": False}
    specs = [TensorSpec(name=name, datatype="FP32", shape=(-1,)) for name in ("image", "other")]
    assert data.inputs_with_gaps(specs) == ["image"]


def test_unreadable_data_is_a_named_error(store: Store) -> None:
    with pytest.raises(DataReadError, match="rows differ in shape"):
        ask(store, "flawed_workloads:Flawed", flaw="ragged")


def test_changed_data_under_an_unchanged_name_is_noticed(store: Store, tmp_path: Path) -> None:
    def write(last: int) -> None:
        lines = [f"{i},{i % 7},{'yes' if i % 2 else 'no'}" for i in range(199)] + [f"199,{last},yes"]
        (tmp_path / "t.csv").write_text("a,b,answer\n" + "\n".join(lines) + "\n")

    def again() -> Outcome:
        return ask(store, "tasks.workloads.tabular:Tabular", folder=str(tmp_path), source="t.csv", target="answer")

    def planned() -> tuple[str, str]:
        plan = Plan()
        token = planning.set(plan)
        try:
            assert "2 classes: 'no', 'yes'." in understood(again())
        finally:
            planning.reset(token)
        (line,) = plan.lines
        return line.action, line.reason

    write(1)
    assert planned() == ("looked", "first time"), "a plan says what the data are understood as"
    assert again().status == "reused" and planned()[0] == "reused"
    write(2)
    action, reason = planned()
    assert action == "looked" and "extra.sources.source" in reason
    write(1)
    assert planned()[0] == "reused"
