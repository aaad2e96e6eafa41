"""Data in parts through the data step, and from there to what is trained: what whole data come to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from test_image_shards import CLASSES, parquet_bytes, pictures, samples, tar_bytes

from model_registry.manifest import FileEntry
from model_registry.store import Store
from tasks.data import DataSpec, check_data, data_ref
from tasks.data.materialise import npz_bytes, storable
from tasks.data.split_files import SplitFiles
from tasks.running import mapped_arrays
from tasks.running.errors import DataCheckFailed, DataReadError
from tasks.running.splits import SPLITS, TARGET, Columns, DataRef
from tasks.running.stage import Job, Outcome, WorkloadRef
from tasks.train import TrainSpec, train

if TYPE_CHECKING:
    import flawed_workloads

    from tasks.data.checking import Checked
else:
    import flawed_workloads

# Great Expectations: slow; its own use of marshmallow and pandas brings warnings.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

HERE = str(Path(__file__).parent)
TOGETHER = {"rows", "classes", "balance", "schema", "precision", "identifiers", "revealing"}
"""Checks of all rows of a split, whose findings name no rows."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "home"))


def both(flaw: str, folder: Path, **spec: Any) -> tuple[Checked, Checked]:
    """The checks of a flawed workload's splits, whole and in three parts."""
    from tasks.data.check_parts import check_parts
    from tasks.data.check_splits import check_splits

    workload, files = flawed_workloads.InThreeParts(flaw), SplitFiles(folder / "columns")
    (folder / "empty").mkdir()
    parts = [storable(part) for part in workload.partitions(folder / "empty")]
    for part in parts:
        files.add(part, {})
    asked: dict[str, Any] = {
        "task": "classes",
        "labels": tuple(workload.labels()),
        "own_frame": lambda split: None,
        "spec": DataSpec.model_validate(spec).model_dump(mode="json"),
        "fills_missing": False,
    }
    return check_splits(storable(workload.splits()), **asked), check_parts(files, sample=parts[0], **asked)


FLAWS = ("none", "nan+bright", "target+balance+conflict", "missing_class+few")


@pytest.mark.parametrize("flaw", FLAWS)
def test_partitions_add_up_to_what_the_whole_comes_to(flaw: str, tmp_path: Path) -> None:
    whole, parts = both(flaw, tmp_path, ranges={"image": (0, 2)})
    rows = [[f for f in found.findings if f.check not in TOGETHER] for found in (whole, parts)]
    assert rows[1] == rows[0]
    together = [
        {(f.check, f.severity, f.says) for f in found.findings if f.check in TOGETHER} for found in (whole, parts)
    ]
    assert together[1] == together[0]
    assert flaw == "none" or whole.findings


def test_what_few_rows_of_a_split_do_is_counted_over_all_partitions(tmp_path: Path) -> None:
    """Three rows of 90 beyond train's range are few, wherever they lie; a fourth is too many."""
    from tasks.data.check_parts import check_parts

    def found(odd: int) -> list[tuple[str, int]]:
        random, files = np.random.default_rng(0), SplitFiles(tmp_path / str(odd))
        for part in range(3):
            splits: dict[str, Columns] = {}
            for name in SPLITS:
                values = random.random((30, 2)).astype(np.float32)
                values[: 2 if name == "test" and part < odd // 2 else 0] += 5
                splits[name] = {"x": values, TARGET: np.arange(30) % 2}
            files.add(splits, {})
        checked = check_parts(
            files,
            task="classes",
            labels=None,
            own_frame=lambda split: None,
            spec=DataSpec().model_dump(mode="json"),
            fills_missing=False,
            sample=splits,
        )
        return [(f.asset, f.count) for f in checked.findings if f.check == "unfamiliar" and f.column == "x.max"]

    assert found(2) == []
    assert found(4) == [("test", 4)]


def test_splits_from_partitions_are_the_bytes_of_whole_ones(tmp_path: Path) -> None:
    files, splits = SplitFiles(tmp_path / "columns"), storable(flawed_workloads.Flawed().splits())
    for part in flawed_workloads.InThreeParts().partitions(_empty(tmp_path)):
        files.add(storable(part), {})
    for name in SPLITS:
        assert files.write_npz(name, tmp_path / "whole.npz").read_bytes() == npz_bytes(splits[name])
    with pytest.raises(DataReadError, match="partition 3 has the columns image float32"):
        files.add({"train": {"image": splits["train"]["image"]}}, {})


def _empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def ask(store: Store, path: str, *, folder: str = HERE, **arguments: Any) -> Outcome:
    workload = WorkloadRef(path=path, arguments=arguments, folder=folder)
    return check_data.task.fn(Job(run_id="test", model="m", store=store.uri, workload=workload), DataSpec())


def test_a_workload_of_one_s_own_may_give_its_splits_in_parts(store: Store) -> None:
    names = ("Flawed", "InThreeParts")
    whole, parts = (data_ref(ask(store, f"flawed_workloads:{name}", flaw="duplicate")) for name in names)
    assert parts == whole
    with pytest.raises(DataCheckFailed, match=r"missing: test, image.nonfinite.*row 7 \(1\)"):
        ask(store, "flawed_workloads:InThreeParts", flaw="nan")


def put_table(store: Store, frame: pd.DataFrame, files: int) -> str:
    """The rows in so many objects; the pattern that names them."""
    folder = f"user/{files}"
    for number, rows in enumerate(np.array_split(np.arange(len(frame)), files)):
        store.put(f"{folder}/part-{number:02}.parquet", frame.iloc[rows].to_parquet(index=False))
    store.put(f"{folder}/notes.txt", b"no rows")
    return f"s3://{store.bucket}/{folder}/*.parquet"


def trained(store: Store, source: str) -> tuple[DataRef, str, Outcome]:
    """The data, and the digest of a model that was trained on them."""
    workload = WorkloadRef(path="tasks.workloads.tabular:Tabular", arguments={"source": source, "target": "late"})
    job = Job(run_id="test", model="m", store=store.uri, workload=workload, device="cpu", threads=1)
    checked = check_data.task.fn(job, DataSpec())
    data = data_ref(checked)
    # Where a model comes from is part of what it is, so the weights are looked at, not the variant.
    teacher = train.task.fn(job, TrainSpec(epochs=2, batch_size=64), data=data).variant
    return data, teacher.file("model.safetensors").sha256, checked


def test_one_object_or_twenty_give_one_fingerprint_and_one_model(store: Store) -> None:
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"size": random.normal(size=900), "town": random.choice(["Ulm", "Bonn"], 900)})
    frame["late"] = np.where(frame["size"] + random.normal(0, 0.2, 900) > 0, "yes", "no")
    frame.loc[7, "size"] = np.nan
    (one, weights, checked), (many, same, _) = (
        trained(store, put_table(store, rows, files))
        for rows, files in ((frame, 1), (frame.sample(frac=1, random_state=1), 20))
    )
    assert one == many and weights == same
    assert one.known is not None and one.known["classes"] == ["no", "yes"]
    assert checked.values["reading"][0].endswith("*.parquet: 1 file, 900 rows. Numbers: 'size'. Text: 'town'.")
    assert any("= source row 7 (missing)" in warning for warning in checked.values["warnings"])


def test_images_in_one_tar_file_or_five_files_of_parquet_are_the_same_data(store: Store) -> None:
    found = pictures(300)
    store.put("user/one/a.tar", tar_bytes(samples(found)))
    for number in range(5):
        store.put(f"user/five/{number}.parquet", parquet_bytes(found[number::5], structs=True))
    path = "tasks.workloads.images:Images"
    sources = [f"s3://{store.bucket}/user/{name}" for name in ("one/*.tar", "five/*.parquet")]
    checked = [ask(store, path, source=source) for source in sources]
    one, five = map(data_ref, checked)
    assert one == five and one.labels == CLASSES
    assert one.known == {"shape": [3, 6, 5], "classes": list(CLASSES)}
    assert any("300 images of 3 classes: 'cat' 100" in fact for fact in checked[0].values["reading"])
    store.client.delete_object(Bucket=store.bucket, Key="user/one/a.tar")  # whoever trains reads no images
    workload = WorkloadRef(path=path, arguments={"source": sources[0]})
    job = Job(run_id="test", model="m", store=store.uri, workload=workload, device="cpu", threads=1)
    assert train.task.fn(job, TrainSpec(epochs=1, batch_size=64), data=one).variant.file("model.safetensors").size > 0


def test_large_arrays_are_mapped_and_shared(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = storable(flawed_workloads.Flawed().splits())["train"]
    entry = store.publish_bytes(npz_bytes(columns), "train.npz")
    monkeypatch.setattr(mapped_arrays, "MAPPED_BYTES", 0)
    fetched: list[FileEntry] = []

    def fetch(asked: FileEntry, place: Path) -> Path:
        fetched.append(asked)
        return Store.fetch(store, asked, place)

    monkeypatch.setattr(store, "fetch", fetch)
    first, second = (mapped_arrays.fetch_columns(store, entry, tmp_path / "shared") for _ in range(2))
    assert fetched == [entry], "the second process finds the files of the first"
    for name, values in columns.items():
        np.testing.assert_array_equal(first[name], values)
    first["image"][0] = 9  # as with any array; nobody else sees it
    np.testing.assert_array_equal(second["image"], columns["image"])
    alone = mapped_arrays.fetch_columns(store, entry)
    np.testing.assert_array_equal(alone["image"], columns["image"])
