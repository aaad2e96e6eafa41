"""Image folders: one folder per class, its name the label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tasks.readers.folder_layout import EXTENSIONS, class_names, images_below
from tasks.readers.image_pixels import image_reading, read_pixels, with_channels
from tasks.readers.reading import ReadColumns, listed
from tasks.running.errors import DataReadError


def read_image_folder(
    folder: Path, *, labels: Sequence[str] = (), size: tuple[int, int] | None = None, channels: int | None = None
) -> tuple[ReadColumns, list[str]]:
    """Images of a folder with one subfolder per class. Hidden files and leftovers such as ``__MACOSX`` are passed over.

    Args:
        folder: a local path; :func:`winnow.local` fetches one from s3://.
        labels: the classes in their order; by default the names of the subfolders with images, sorted.
        size: (height, width) to scale to; by default all images must have one size.
        channels: 1 (grey) or 3 (colour); by default 3 where any image has colour. An alpha channel is left out.

    Returns:
        ``image`` [rows, channels, height, width] uint8 and ``target`` [rows] int64 (index into the labels), and the
        labels.

    Raises:
        DataReadError: no image, a single class, an unknown class, a file that is no image, sizes that differ.
    """
    names = list(labels) or class_names(folder)
    unknown = sorted(set(class_names(folder)) - set(names))
    if unknown:
        raise DataReadError(
            f"{folder}: the classes {unknown} are not among {names}; all splits must have the same ones"
        )
    files = [(path, names.index(path.relative_to(folder).parts[0])) for path in image_files(folder, names)]
    if not files:
        raise DataReadError(
            f"{folder} holds no images: it must hold one folder per class, each with images "
            f"({', '.join(sorted(EXTENSIONS))})"
        )
    if len(names) < 2:
        inside = class_names(folder / names[0])
        hint = f"; {names[0]!r} holds the folders {listed(inside)}: name it as the source" if inside else ""
        raise DataReadError(f"{folder}: all {len(files)} images are of one class, {names[0]!r}{hint}")
    images: list[np.ndarray] = []
    modes = Counter[str]()
    for path, _ in files:
        image, mode = read_pixels(path, str(path), size, channels)
        modes[mode] += 1
        if images and image.shape[1:] != images[0].shape[1:]:
            raise DataReadError(
                f"{path} is {image.shape[1]} x {image.shape[2]} and {files[0][0]} {images[0].shape[1]} x "
                f"{images[0].shape[2]} pixels (height x width); set `size: [height, width]` to scale all to one size"
            )
        images.append(image)
    colours = max(len(image) for image in images)
    stacked = np.stack([with_channels(image[None], colours)[0] for image in images])
    target = np.array([t for _, t in files], dtype=np.int64)
    counts = {name: int((target == number).sum()) for number, name in enumerate(names)}
    return ReadColumns(
        {"image": stacked, "target": target}, image_reading(folder.name, counts, modes, stacked.shape)
    ), names


def image_files(folder: Path, labels: Sequence[str]) -> list[Path]:
    """The images of these classes, in the order in which they are read."""
    return [path for name in labels if (folder / name).is_dir() for path in images_below(folder / name)]
