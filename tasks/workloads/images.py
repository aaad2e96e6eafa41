"""Any images with classes: image folders, MNIST's IDX files, npz, tar files or Parquet, local or s3://."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tasks.readers.folder_layout import class_names, passed_over, split_folders
from tasks.readers.folder_reader import image_files, read_image_folder
from tasks.readers.idx_reader import read_idx_folder
from tasks.readers.image_pixels import with_channels
from tasks.readers.image_shards import in_shards
from tasks.readers.kept_columns import Unlabelled
from tasks.readers.npz_reader import read_npz
from tasks.readers.reading import ReadColumns, Reading, listed
from tasks.readers.sources import local
from tasks.readers.splitting import Divided, complete, require_splits, split_columns
from tasks.running.errors import DataReadError
from tasks.running.splits import SPLITS, TARGET, Columns
from tasks.workloads.gathered_images import ImageFacts
from tasks.workloads.image_parts import ImageParts
from tasks.workloads.workload import Inputs

_FILE = "file"
"""Column of the names of the images' files, on the way to what findings name."""


class Images:
    """One input ``image``, raw pixels [N, channels, height, width] as the files have them (UINT8 0 to 255; an npz of
    floats stays as it is). Scaling to 0..1 is part of the model.

    Args:
        source: a folder with one folder per class (or ``train/``, ``val/``, ``test/`` with these inside), a folder with
            MNIST's IDX files, or an npz with the arrays ``image`` and ``target``; local or s3://. Or one of these per
            split (``{train: ..., test: ...}``). Splits that are missing are taken out of train. Hidden files,
            ``__MACOSX`` and the like are passed over. Or a pattern of files, ``s3://bucket/shards/*.tar`` in the form
            of WebDataset (``0001.jpg`` beside ``0001.cls`` or ``0001.json``) or ``*.parquet`` with a column of images
            (bytes, or {bytes, path}), that together may be larger than the memory: each image is then divided by its
            pixels, not by its class.
        size: [height, width] to scale all images to; needed where they differ.
        channels: 1 for grey, 3 for colour; by default 3 where any image has colour.
        seed: of the division into splits.
        image: of Parquet, the column of images; by default ``image``.
        target: of Parquet, the column of classes, in tar files their key in ``.json``; by default ``label``, and in tar
            files ``.cls`` before it.
        unlabelled: what to do about images without a class in such files: ``refuse`` them, or ``drop`` them.
    """

    def __init__(
        self,
        source: str | Mapping[str, str],
        size: tuple[int, int] | None = None,
        channels: int | None = None,
        seed: int = 0,
        image: str | None = None,
        target: str | None = None,
        unlabelled: Unlabelled = "refuse",
    ) -> None:
        if channels not in (None, 1, 3):
            raise DataReadError(f"channels {channels!r} must be 1 (grey) or 3 (colour)")
        if not isinstance(source, str):
            require_splits(source)
        if unlabelled not in get_args(Unlabelled):
            raise DataReadError(f"unlabelled {unlabelled!r} must be one of {', '.join(get_args(Unlabelled))}")
        self.source = source
        self.size = (int(size[0]), int(size[1])) if size is not None else None
        self.channels = channels
        self.seed = seed
        self._parts: ImageParts | None = None
        sources = [source] if isinstance(source, str) else list(source.values())
        if any(map(in_shards, sources)):
            if not all(map(in_shards, sources)):
                raise DataReadError(f"source {source!r}: name tar files or Parquet for every split, or for none")
            self._parts = ImageParts(
                source,
                size=self.size,
                channels=channels,
                seed=seed,
                image=image,
                target=target,
                unlabelled=unlabelled,
            )
        elif image or target or unlabelled != "refuse":
            raise DataReadError(
                f"image, target and unlabelled say how tar files and Parquet are read, and {source!r} names none"
            )

    def splits(self) -> dict[str, Columns]:
        return self._read[0] if self._parts is None else self._parts.whole()

    def partitions(self, folder: Path) -> Iterator[Divided] | None:
        """The splits in parts where the source is tar files or Parquet."""
        return None if self._parts is None else self._parts.divided(folder)

    def known(self) -> dict[str, Any] | None:
        """What the images of all files tell."""
        return None if self._parts is None else self._parts.facts.model_dump(mode="json")

    def recall(self, known: dict[str, Any]) -> None:
        """Take what :meth:`known` said, and read no files for it."""
        if self._parts is not None:
            self._parts.facts = ImageFacts.model_validate(known)

    def model(self, role: str, width: float = 1.0) -> nn.Module:
        """The ImageClassifier, sized by the images."""
        from tasks.workloads.architectures import ImageClassifier

        return ImageClassifier(shape=self._shape, classes=len(self.labels()), width=width)

    def preprocess(self, inputs: Inputs) -> Inputs:
        image = inputs["image"]
        return {"image": image.float() / 255 if image.dtype == torch.uint8 else image}

    def labels(self) -> list[str]:
        return self._read[1] if self._parts is None else list(self._parts.facts.classes)

    @property
    def _shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        if self._parts is not None:
            return self._parts.facts.shape
        image = self._read[0]["train"]["image"]
        return int(image.shape[1]), int(image.shape[2]), int(image.shape[3])

    @cached_property
    def _read(self) -> tuple[Divided, list[str]]:
        found: dict[str, ReadColumns]
        if isinstance(self.source, str):
            with local(self.source) as path:
                found, labels = self._read_path(path)
        else:
            found, labels = {}, []
            for split in sorted(self.source, key=SPLITS.index):  # train first: its classes are the classes
                with local(self.source[split]) as path:
                    parts, labels = self._read_path(path, labels)
                if "all" not in parts and split not in parts:
                    raise DataReadError(f"{self.source[split]} holds the splits {sorted(parts)} and no {split}")
                found[split] = parts["all"] if "all" in parts else parts[split]
        reading = sum((table.reading for table in found.values()), Reading()) + _mixture(found)
        columns, files = _separated(found)
        if "all" in found:
            divided = split_columns(columns["all"], seed=self.seed, source_rows=files.get("all"))
        else:
            divided = complete(columns, seed=self.seed, source_rows=files)
        return Divided(divided, divided.source_rows, reading), labels

    def _read_path(self, path: Path, labels: list[str] | None = None) -> tuple[dict[str, ReadColumns], list[str]]:
        """Columns by split (``all`` where the source does not say) and labels."""
        if path.is_file():
            columns = _image_columns(read_npz(path), path)
            return {"all": columns}, labels or _numbers(columns)
        if any("ubyte" in file.name for file in path.iterdir() if file.is_file()):
            if class_names(path):
                raise DataReadError(
                    f"{path} holds MNIST's IDX files and the folders {listed(class_names(path))} with images; it "
                    "cannot be both: name a folder with one of them"
                )
            sets = read_idx_folder(path)
            return sets, labels or _numbers(sets.get("train", next(iter(sets.values()))))
        left = passed_over(path)
        found: dict[str, ReadColumns] = {}
        for split, folder in split_folders(path).items():
            columns, labels = self._read_folder(folder, labels)
            found[split] = ReadColumns(columns, columns.reading + left)
        return found, labels or []

    def _read_folder(self, path: Path, labels: list[str] | None) -> tuple[ReadColumns, list[str]]:
        columns, labels = read_image_folder(path, labels=labels or (), size=self.size, channels=self.channels)
        files = [file.relative_to(path).as_posix() for file in image_files(path, labels)]
        return ReadColumns({**columns, _FILE: np.array(files)}, columns.reading), labels


def _mixture(found: dict[str, ReadColumns]) -> Reading:
    """A finding where some splits are grey and the others have colour."""
    grey = [split for split, table in found.items() if table["image"].shape[1] == 1]
    if not grey or len(grey) == len(found):
        return Reading()
    return Reading(findings=(f"the splits {listed(grey)} are grey and the others have colour; all are read in colour",))


def _separated(found: dict[str, ReadColumns]) -> tuple[dict[str, Columns], dict[str, list[str]]]:
    """Images and targets by split, all in colour where any is; and the files of the images."""
    channels = max(table["image"].shape[1] for table in found.values())
    columns: dict[str, Columns] = {}
    for split, table in found.items():
        columns[split] = {"image": with_channels(table["image"], channels), TARGET: table[TARGET]}
    return columns, {split: table[_FILE].tolist() for split, table in found.items() if _FILE in table}


def _image_columns(columns: ReadColumns, path: Path) -> ReadColumns:
    missing = {"image", TARGET} - set(columns)
    if missing:
        raise DataReadError(
            f"{path} has no array {sorted(missing)}; it has {sorted(columns)}: name them image and target"
        )
    image = columns["image"]
    if image.ndim == 3:
        image = image[:, None]
    if image.ndim != 4:
        raise DataReadError(f"{path}: image has shape {image.shape}; it must be [rows, height, width] or with channels")
    if image.shape[1] not in (1, 3) and image.shape[3] in (1, 3):
        image = np.ascontiguousarray(image.transpose(0, 3, 1, 2))
    if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
        raise DataReadError(
            f"{path}: image holds {image.dtype}; it must be uint8 (0 to 255) or floating point (0 to 1)"
        )
    target = columns[TARGET]
    if target.dtype.kind not in "iu" or target.ndim != 1:
        raise DataReadError(f"{path}: target is {target.dtype} {target.shape}; it must be one integer class per row")
    unused = sorted(set(columns) - {"image", TARGET})
    findings = (f"{path.name}: the arrays {listed(unused)} were left out",) if unused else ()
    said = f"{path.name}: images read as [rows, channels, height, width] {list(image.shape)}."
    return ReadColumns({"image": image, TARGET: target.astype(np.int64)}, columns.reading + Reading((said,), findings))


def _numbers(columns: Columns) -> list[str]:
    target: NDArray[np.generic] = columns[TARGET]
    return [str(number) for number in range(int(target.max()) + 1)]
