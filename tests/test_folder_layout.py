"""Folders of images as people bring them: splits, classes, leftovers, grey and colour."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.readers.folder_layout import class_names, passed_over, split_folders
from tasks.readers.folder_reader import read_image_folder
from tasks.readers.splitting import Divided
from tasks.running.errors import DataReadError
from tasks.running.splits import TARGET
from tasks.workloads.images import Images


def fill(folder: Path, *names: str, mode: str = "RGB") -> None:
    """Different images of 4 x 3 pixels; a file of another ending is text."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix != ".png":
            path.write_text("no image")
            continue
        number = len(list(folder.rglob("*.png")))
        Image.new("RGB", (4, 3), (number, 250 - number, 7)).convert(mode).save(path)


def test_what_archives_and_systems_leave_behind_is_no_class_and_no_image(tmp_path: Path) -> None:
    for split in ("train", "Val", "test"):
        fill(tmp_path, *(f"{split}/{name}/{i}.png" for name in ("blue", "red") for i in range(12)))
    fill(tmp_path, "__MACOSX/train/blue/x.png", ".cache/y.png", "train/red/.hidden/z.png", "train/red/._0.png")
    fill(tmp_path, "Thumbs.db", "train/Thumbs.db", "train/red/desktop.ini")
    workload = Images(str(tmp_path))
    splits = workload.splits()
    assert isinstance(splits, Divided) and workload.labels() == ["blue", "red"]
    assert {name: len(columns[TARGET]) for name, columns in splits.items()} == {
        "train": 20,
        "calibration": 4,
        "validation": 24,
        "test": 24,
    }
    assert f"{tmp_path.name}: 7 hidden files and leftovers of systems and archives were passed over." in (
        splits.reading.facts
    )
    assert splits.reading.findings == ()


def test_what_is_passed_over_is_counted(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.png", "a/2.png", "b/1.png", "loose.png", "notes.txt", "a/3.heic", "a/4.heic", "c/readme.txt")
    assert class_names(tmp_path) == ["a", "b"]
    assert passed_over(tmp_path).findings == (
        f"{tmp_path.name}: 4 files that are no images by their ending were passed over: .heic 2, .txt 2",
        f"{tmp_path.name}: 1 images lie beside the folders, in none of them, and were passed over",
        f"{tmp_path.name}: the folders 'c' hold no images and were passed over",
    )


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["train/a/1.png", "test/a/1.png", "extra/1.png"], "'test', 'train' look like splits, .* and 'extra' like"),
        (["train/a/1.png", "train/1.png", "test/a/1.png"], "'test' look like splits, .* and 'train' like classes"),
        (["train/1.png", "test/2.png"], "'test', 'train' are called like splits and hold images themselves"),
        (["val/a/1.png", "test/a/1.png"], "holds the splits 'test', 'val' and no train"),
        (["train/a/1.png", "val/a/1.png", "valid/a/1.png"], "'val' and 'valid' are both the split validation"),
    ],
)
def test_a_mixture_is_refused_with_what_was_understood(names: list[str], says: str, tmp_path: Path) -> None:
    fill(tmp_path, *names)
    with pytest.raises(DataReadError, match=says):
        split_folders(tmp_path)


def test_a_class_may_be_called_like_a_split(tmp_path: Path) -> None:
    fill(tmp_path, "train/1.png", "bus/1.png")
    assert split_folders(tmp_path) == {"all": tmp_path}


def test_idx_files_beside_class_folders_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.png", "b/1.png", "train-images-idx3-ubyte")
    with pytest.raises(DataReadError, match="holds MNIST's IDX files and the folders 'a', 'b' with images"):
        Images(str(tmp_path)).splits()


def test_a_single_class_is_refused_and_where_the_classes_are_is_said(tmp_path: Path) -> None:
    fill(tmp_path, *(f"flowers/{name}/{i}.png" for name in ("rose", "tulip") for i in range(3)))
    with pytest.raises(
        DataReadError, match="one class, 'flowers'; 'flowers' holds the folders 'rose', 'tulip': name it"
    ):
        Images(str(tmp_path)).splits()


def test_colour_is_kept_where_any_image_has_it(tmp_path: Path) -> None:
    fill(tmp_path, "a/0.png", mode="L")
    fill(tmp_path, *(f"{name}/{i}.png" for name in "ab" for i in range(1, 4)))
    columns, _ = read_image_folder(tmp_path)
    assert columns["image"].shape == (7, 3, 3, 4)
    assert len({channel.tobytes() for channel in columns["image"][0]}) == 1, "grey stays grey"
    assert columns.reading.findings == (
        f"{tmp_path.name}: 1 of 7 images are grey and the others have colour; all are read in colour; to read them in "
        "grey, set `channels: 1`",
    )
    assert read_image_folder(tmp_path, channels=1)[0]["image"].shape == (7, 1, 3, 4)


def test_colour_in_one_split_is_colour_in_all(tmp_path: Path) -> None:
    fill(tmp_path, *(f"train/{name}/{i}.png" for name in "ab" for i in range(20)), mode="L")
    fill(tmp_path, *(f"test/{name}/{i}.png" for name in "ab" for i in range(9)))
    splits = Images(str(tmp_path)).splits()
    assert isinstance(splits, Divided) and {columns["image"].shape[1] for columns in splits.values()} == {3}
    assert splits.reading.findings == (
        "the splits 'train' are grey and the others have colour; all are read in colour",
    )


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_an_alpha_channel_is_reported(mode: str, tmp_path: Path) -> None:
    fill(tmp_path, "a/0.png", "b/0.png", mode=mode)
    columns, _ = read_image_folder(tmp_path)
    assert columns.reading.findings == (f"{tmp_path.name}: 2 of 2 images have an alpha channel, which is left out",)
    assert columns["image"].shape[1] == (3 if mode == "RGBA" else 1)


def test_arrays_that_are_not_used_are_named(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 6, 5), dtype=np.uint8)
    np.savez(tmp_path / "i.npz", image=pixels, target=np.arange(40) % 2, weight=np.ones(40))
    splits = Images(str(tmp_path / "i.npz")).splits()
    assert isinstance(splits, Divided) and splits.reading.findings == ("i.npz: the arrays 'weight' were left out",)
