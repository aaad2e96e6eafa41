"""Image folders: one folder per class, its name the label."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tasks.readers.folder_layout import EXTENSIONS, class_names, images_below
from tasks.readers.reading import ReadColumns, Reading, counts_text, listed
from tasks.running.errors import DataReadError

_GREY = {"1", "L", "LA"}
_ALPHA = "with alpha"
_EIGHT_BITS = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}


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
        image, mode = _load(path, size, channels)
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
    return ReadColumns({"image": stacked, "target": target}, _reading(folder, counts, modes, stacked.shape)), names


def with_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """Images [rows, 1 or 3, height, width] with that many channels: grey ones become colour without changing."""
    return images if images.shape[1] == channels else np.repeat(images, channels, axis=1)


def image_files(folder: Path, labels: Sequence[str]) -> list[Path]:
    """The images of these classes, in the order in which they are read."""
    return [path for name in labels if (folder / name).is_dir() for path in images_below(folder / name)]


def _reading(folder: Path, counts: dict[str, int], modes: Counter[str], shape: tuple[int, ...]) -> Reading:
    rows, channels, height, width = shape
    shown = ", ".join(f"{mode} {count}" for mode, count in sorted(modes.items()))
    facts = (
        f"{folder.name}: {rows} images of {len(counts)} classes: {counts_text(counts)}.",
        f"{folder.name}: read as {height} x {width} pixels in {'grey' if channels == 1 else 'colour'}; modes: {shown}.",
    )
    findings = []
    grey = sum(count for mode, count in modes.items() if mode.split()[0] in _GREY)
    if 0 < grey < rows:
        how = "grey, as asked" if channels == 1 else "colour; to read them in grey, set `channels: 1`"
        findings.append(
            f"{folder.name}: {grey} of {rows} images are grey and the others have colour; all are read in {how}"
        )
    alpha = sum(count for mode, count in modes.items() if _ALPHA in mode)
    if alpha:
        findings.append(f"{folder.name}: {alpha} of {rows} images have an alpha channel, which is left out")
    return Reading(facts, tuple(findings))


def _load(path: Path, size: tuple[int, int] | None, channels: int | None) -> tuple[np.ndarray, str]:
    """The pixels [channels, height, width], and the file's mode, ``with alpha`` where it has some."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                if opened.mode not in _EIGHT_BITS:
                    raise DataReadError(f"{path} has pixels of mode {opened.mode}; convert it to 8 bits per channel")
                alpha = "A" in opened.getbands() or "transparency" in opened.info
                mode = opened.mode + (f" {_ALPHA}" if alpha else "")
                image = ImageOps.exif_transpose(opened)
                colours = channels or (1 if image.mode in _GREY else 3)
                image = image.convert("L" if colours == 1 else "RGB")
                if size is not None and image.size != (size[1], size[0]):
                    image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
                pixels = np.asarray(image, dtype=np.uint8)
    except (
        UnidentifiedImageError,
        OSError,
        SyntaxError,  # Pillow's PNG reader raises it for a broken chunk
        ValueError,
        Image.DecompressionBombWarning,
        Image.DecompressionBombError,
    ) as error:
        raise DataReadError(f"{path} cannot be read as an image: {error}; repair it or take it out") from error
    return (pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))), mode
