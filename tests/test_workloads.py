"""The built-in workloads: what they read, and that their models and preprocessing fit their data."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from PIL import Image

from tasks.export.onnx_export import export_onnx
from tasks.export.raw_inputs import RawInputs
from tasks.readers.content import row_hashes
from tasks.running.errors import DataReadError
from tasks.running.splits import SPLITS, TARGET, Columns
from tasks.running.stage import WorkloadRef
from tasks.workloads.segment_display import SEGMENTS
from tasks.workloads.tabular import Tabular
from tasks.workloads.workload import Workload, load_workload


def load(path: str, **arguments: Any) -> Workload:
    return load_workload(WorkloadRef(path=f"tasks.workloads.{path}", arguments=arguments))


def answers(workload: Workload, rows: Columns, **scale: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs of an untrained teacher for raw rows, and their targets, the way training computes them."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in rows.items()}
    tensors = {n: t.float() if t.dtype == torch.float64 else t for n, t in tensors.items()}
    inputs, targets = workload.batch(tensors)
    model = workload.model("teacher", **scale).eval()
    with torch.no_grad():
        return model(**workload.preprocess(inputs)), targets


def head(columns: Columns, rows: int = 8) -> Columns:
    return {name: values[:rows] for name, values in columns.items()}


def weights(workload: Workload, **scale: Any) -> int:
    return sum(p.numel() for p in workload.model("student", **scale).parameters())


# -- digits -----------------------------------------------------------------------------------------------------------
def test_digits_have_no_image_in_two_splits_and_every_class_in_each() -> None:
    workload = load("digits:Digits")
    splits = workload.splits()
    assert [len(splits[name][TARGET]) for name in SPLITS] == [791, 108, 359, 539]
    hashes = [set(row_hashes(splits[name]).tolist()) for name in SPLITS]
    assert sum(map(len, hashes)) == len(set.union(*hashes)) == 1797
    assert all(set(splits[name][TARGET].tolist()) == set(range(10)) for name in SPLITS)
    image = splits["train"]["image"]
    assert image.dtype == np.float32 and image.shape[1:] == (1, 8, 8) and (image.min(), image.max()) == (0, 16)

    outputs, targets = answers(workload, head(splits["test"]))
    assert outputs.shape == (8, 10) and torch.isfinite(workload.loss(outputs, targets))
    assert workload.labels() == tuple("0123456789")
    assert weights(workload, width=0.5) < 0.5 * weights(workload)


def test_fewer_digits_for_quick_runs() -> None:
    splits = load("digits:Digits", rows=400).splits()
    assert [len(splits[name][TARGET]) for name in SPLITS] == [176, 24, 80, 120]


# -- worked examples: two inputs, several labels, sequences ----------------------------------------------------------
def test_pairs_of_digits_share_no_image_between_splits() -> None:
    workload = load("digit_pairs:DigitPairs", share=0.1)
    splits = workload.splits()
    assert [len(splits[name][TARGET]) for name in SPLITS] == [600, 50, 150, 200]
    images = [
        set(row_hashes({"image": np.concatenate([splits[name]["left"], splits[name]["right"]])}).tolist())
        for name in SPLITS
    ]
    assert sum(map(len, images)) == len(set.union(*images))
    assert all(0.4 < columns[TARGET].mean() < 0.6 for columns in splits.values())
    for columns in splits.values():
        assert (columns["left"] != columns["right"]).any(axis=(1, 2, 3)).all()
    outputs, targets = answers(workload, head(splits["test"]))
    assert outputs.shape == (8, 2) and torch.isfinite(workload.loss(outputs, targets))
    assert weights(workload, width=0.5) < 0.5 * weights(workload)


def test_segments_are_those_of_a_display_and_scored_label_by_label() -> None:
    workload = load("segment_display:SegmentDisplay", rows=600)
    splits = workload.splits()
    assert splits["test"][TARGET].shape == (180, 7) and set(np.unique(splits["train"][TARGET])) == {0.0, 1.0}
    lit = {str(digit): int(row.sum()) for digit, row in enumerate(SEGMENTS)}
    assert lit == {"0": 6, "1": 2, "2": 5, "3": 5, "4": 4, "5": 5, "6": 6, "7": 3, "8": 7, "9": 6}
    outputs, targets = answers(workload, head(splits["test"]))
    assert outputs.shape == (8, 7) and torch.isfinite(workload.loss(outputs, targets))
    metric = workload.metric(splits["test"][TARGET])
    right = np.array([[3.0, -3.0], [3.0, 3.0]]), np.array([[1.0, 0.0], [0.0, 0.0]])
    assert metric.better == "higher" and metric.per_sample(*right).tolist() == [1.0, 0.0]


def test_letters_of_any_length_are_answered() -> None:
    workload = load("letter_sequences:LetterSequences", share=0.1)
    splits = workload.splits()
    assert [len(splits[name][TARGET]) for name in SPLITS] == [400, 50, 150, 300]
    letters = splits["train"]["letters"]
    assert letters.dtype == np.int64 and letters.shape[1] == 24 and (letters.min(), letters.max()) == (0, 19)
    assert workload.dynamic_dims() == {"letters": {1: "length"}}
    for length in (2, 24):
        rows = {"letters": letters[:8, :length], TARGET: splits["train"][TARGET][:8]}
        outputs, targets = answers(workload, rows)
        assert outputs.shape == (8, 4) and torch.isfinite(workload.loss(outputs, targets))
    assert all((a[TARGET] == b[TARGET]).all() for a, b in zip(splits.values(), workload.splits().values(), strict=True))


# -- tables -----------------------------------------------------------------------------------------------------------
def people(folder: Path, rows: int = 120) -> Path:
    """A table with numbers, text, a gap of each and an identifier."""
    random = np.random.default_rng(0)
    lines = ["id,age,town,glad,income"]
    for i in range(rows):
        age = "" if i == 5 else str(20 + i % 50)
        town = "" if i == 7 else ("Ulm", "Bonn", "Kiel")[i % 3]
        lines.append(f"p{i},{age},{town},{'yes' if i % 2 else 'no'},{2000 + 30 * (i % 50) + random.normal():.2f}")
    path = folder / "people.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_table_with_text_classes_categories_and_gaps(tmp_path: Path) -> None:
    workload = load("tabular:Tabular", source=str(people(tmp_path)), target="glad", drop=["id"])
    splits = workload.splits()
    assert workload.user.features == ["age", "town", "income"]
    assert workload.user.categories == {"town": ["Bonn", "Kiel", "Ulm"]}
    assert workload.labels() == ("no", "yes")
    rows = {name: np.concatenate([splits[s][name] for s in SPLITS]) for name in ("features", TARGET)}
    assert rows["features"].shape == (120, 3)
    assert np.isnan(rows["features"]).sum(axis=0).tolist() == [1, 1, 0]
    frame = workload.frame(rows)
    assert frame["town"].isna().sum() == 1 and set(frame["town"].dropna()) == {"Bonn", "Kiel", "Ulm"}

    outputs, targets = answers(workload, rows)
    assert outputs.shape == (120, 2) and bool(torch.isfinite(outputs).all())
    assert torch.isfinite(workload.loss(outputs, targets))


def test_preprocessing_standardises_fills_gaps_and_encodes(tmp_path: Path) -> None:
    workload = load("tabular:Tabular", source=str(people(tmp_path)), target="glad", drop=["id"])
    train = workload.splits()["train"]["features"].astype(np.float32)
    made = workload.preprocess({"features": torch.from_numpy(train)})["features"].numpy()
    assert made.shape == (len(train), 2 + 3)
    np.testing.assert_allclose(made[:, :2].mean(axis=0), 0, atol=0.05)
    np.testing.assert_allclose(made[:, :2].std(axis=0), 1, atol=0.05)
    nan, other = float("nan"), 3.0  # a text that train does not have
    odd = torch.tensor([[nan, 1.0, 2000.0], [30.0, nan, 2000.0], [30.0, other, 2000.0]])
    made = workload.preprocess({"features": odd})["features"].numpy()
    assert made[0, 0] == 0
    assert made[:, 2:].tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]


def test_the_preprocessing_goes_into_the_onnx_file(tmp_path: Path) -> None:
    workload = load("tabular:Tabular", source=str(people(tmp_path)), target="income", drop=["id"])
    rows = workload.splits()["train"]["features"].astype(np.float32)
    model = workload.model("teacher", width=0.5)
    module = RawInputs(model, workload.preprocess, ("features",)).eval()
    data = export_onnx(module, {"features": torch.from_numpy(rows)}, output="prediction")
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        wanted = module(torch.from_numpy(rows)).numpy()
    (found,) = session.run(None, {"features": rows})
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    assert 1500 < wanted.mean() < 4500, "an untrained regression answers near the mean of train, in its unit"


def test_regression_is_measured_against_the_variance(tmp_path: Path) -> None:
    workload = load("tabular:Tabular", source=str(people(tmp_path)), target="income", drop=["id"])
    target = workload.splits()["train"][TARGET].astype(np.float32)
    metric = workload.metric(target)
    assert (metric.name, metric.better) == ("nmse", "lower") and workload.labels() is None
    assert not workload.metric_ref(target).builtin
    mean = np.full((len(target), 1), target.mean(), dtype=np.float32)
    np.testing.assert_allclose(metric.per_sample(mean, target).mean(), 1, rtol=1e-3)
    loss = workload.loss(torch.from_numpy(mean), torch.from_numpy(target))
    np.testing.assert_allclose(float(loss), 1, rtol=1e-3)


def test_a_file_per_split(tmp_path: Path) -> None:
    lines = people(tmp_path).read_text().splitlines()
    (tmp_path / "test.csv").write_text("\n".join([lines[0], *lines[-30:], "p,33,Rom,maybe,2000.0"]) + "\n")
    (tmp_path / "train.csv").write_text("\n".join(lines[:-30]) + "\n")
    source = {"train": str(tmp_path / "train.csv"), "test": str(tmp_path / "test.csv")}
    workload = load("tabular:Tabular", source=source, target="glad", drop=["id"])
    splits = workload.splits()
    assert len(splits["test"][TARGET]) == 31 and sum(len(splits[n][TARGET]) for n in SPLITS) == 121
    assert splits["test"][TARGET][-1] == -1, "a class that train does not have is no class: the data checks name it"
    assert splits["test"]["features"][-1, 1] == 3, "numbered after the three of train: no category to the model"
    assert workload.frame(splits["test"])["town"].tolist()[-1] == "Rom"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"target": "gone"}, "has no column 'gone' to predict; it has .'age', 'glad'"),
        ({"target": "glad"}, "'id' has .* different texts, at most 100"),
        ({"target": "glad", "drop": ["id", "age", "town", "income"]}, "nothing to learn from"),
        (
            {"target": "town", "task": "regression", "drop": ["id"], "unlabelled": "drop"},
            "holds text; a number is needed",
        ),
        ({"source": {"holdout": "x.csv"}}, "names the splits .'holdout'."),
        ({"target": "glad", "drop": ["ID"]}, r"drop names \['ID'\], which the data \(.*people.csv\) do not have"),
        ({"target": "glad", "unlabelled": "guess"}, "unlabelled 'guess' must be one of refuse, drop"),
    ],
)
def test_what_is_wrong_with_a_table_is_told(arguments: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(DataReadError, match=says):
        Tabular(**({"source": str(people(tmp_path, 240))} | arguments)).splits()


def test_whole_numbers_are_classes_unless_they_are_many(tmp_path: Path) -> None:
    def labels(distinct: int, **arguments: Any) -> list[str] | None:
        np.savez(tmp_path / "t.npz", x=np.arange(800.0).reshape(400, 2), target=np.arange(400) % distinct)
        return Tabular(source=str(tmp_path / "t.npz"), **arguments).labels()

    assert labels(3) == ["0", "1", "2"]
    assert labels(200) is None
    assert labels(3, task="regression") is None
    assert len(labels(200, task="classification") or []) == 200


@pytest.mark.parametrize(("name", "classes"), [("breast_cancer", 2), ("wine", 3), ("iris", 3), ("diabetes", None)])
def test_tables_of_sklearn(name: str, classes: int | None) -> None:
    workload = load("sklearn_table:SklearnTable", name=name)
    splits = workload.splits()
    outputs, targets = answers(workload, head(splits["train"]))
    assert outputs.shape == (8, classes or 1) and torch.isfinite(workload.loss(outputs, targets))
    assert (len(workload.labels() or ()) or None) == classes


# -- images -----------------------------------------------------------------------------------------------------------
def paint(folder: Path, *, splits: tuple[str, ...] = ("",), size: tuple[int, int] = (12, 10)) -> None:
    """Forty colour images of two classes per split."""
    random = np.random.default_rng(0)
    for split in splits:
        for i in range(40):
            path = folder / split / ("red", "blue")[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)


def test_an_image_folder(tmp_path: Path) -> None:
    paint(tmp_path)
    workload = load("images:Images", source=str(tmp_path))
    splits = workload.user.splits()
    assert splits.source_rows["test"][0].endswith(".png") and set(splits["test"]) == {"image", TARGET}
    assert splits["train"]["image"].shape == (22, 3, 10, 12) and splits["train"]["image"].dtype == np.uint8
    assert workload.labels() == ("blue", "red")
    pixels = workload.preprocess({"image": torch.from_numpy(splits["train"]["image"])})["image"]
    assert pixels.dtype == torch.float32 and 0.9 < float(pixels.max()) <= 1
    outputs, _ = answers(workload, head(splits["train"]), width=0.25)
    assert outputs.shape == (8, 2)


def test_an_image_folder_with_splits_scaled_and_grey(tmp_path: Path) -> None:
    paint(tmp_path, splits=("train", "val", "test"))
    workload = load("images:Images", source=str(tmp_path), size=[8, 8], channels=1)
    splits = workload.splits()
    assert {name: splits[name]["image"].shape for name in ("validation", "test")} == {
        "validation": (40, 1, 8, 8),
        "test": (40, 1, 8, 8),
    }
    assert len(splits["train"][TARGET]) + len(splits["calibration"][TARGET]) == 40


def test_a_folder_per_split(tmp_path: Path) -> None:
    paint(tmp_path, splits=("a", "b"))
    source = {"test": str(tmp_path / "b"), "train": str(tmp_path / "a")}
    splits = load("images:Images", source=source).splits()
    assert len(splits["test"][TARGET]) == 40 and sum(len(splits[n][TARGET]) for n in SPLITS) == 80
    (tmp_path / "b" / "green").mkdir()
    shutil.copy(tmp_path / "b" / "red" / "0.png", tmp_path / "b" / "green")
    with pytest.raises(DataReadError, match=r"'green'. are not among .'blue', 'red'."):
        load("images:Images", source=source).splits()


@pytest.mark.parametrize("shape", [(40, 6, 5), (40, 6, 5, 3), (40, 3, 6, 5)])
def test_images_of_an_npz(shape: tuple[int, ...], tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.savez(tmp_path / "i.npz", image=pixels, target=np.arange(40) % 2)
    splits = load("images:Images", source=str(tmp_path / "i.npz")).splits()
    assert splits["train"]["image"].shape[1:] == ((3 if len(shape) == 4 else 1), 6, 5)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": np.zeros((40, 6, 5))}, r"no array \['image', 'target'\]"),
        (
            {"image": np.zeros((40, 6), dtype=np.uint8), "target": np.zeros(40, dtype=int)},
            "must be .rows, height, width",
        ),
        ({"image": np.zeros((40, 6, 5), dtype=np.int32), "target": np.zeros(40, dtype=int)}, "holds int32"),
        ({"image": np.zeros((40, 6, 5), dtype=np.uint8), "target": np.zeros(40)}, "one integer class per row"),
    ],
)
def test_a_wrong_npz_of_images_is_told(arrays: dict[str, Any], says: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "i.npz", **arrays)
    with pytest.raises(DataReadError, match=says):
        load("images:Images", source=str(tmp_path / "i.npz")).splits()
