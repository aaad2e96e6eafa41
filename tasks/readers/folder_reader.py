"""Image folders: one folder per class, its name the label."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tasks.running.errors import DataReadError
from tasks.running.splits import Columns

_EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
_EIGHT_BITS = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}


def class_names(folder: Path) -> list[str]:
    """The classes of an image folder: its subfolders' names, sorted, hidden ones left out."""
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def read_image_folder(
    folder: Path, *, labels: Sequence[str] = (), size: tuple[int, int] | None = None, channels: int | None = None
) -> tuple[Columns, list[str]]:
    """Images of a folder with one subfolder per class.

    Args:
        folder: a local path; :func:`winnow.local` fetches one from s3://.
        labels: the classes in their order; by default the subfolders' names, sorted.
        size: (height, width) to scale to; by default all images must have one size.
        channels: 1 (grey) or 3 (colour); by default as the first image is.

    Returns:
        ``image`` [rows, channels, height, width] uint8 and ``target`` [rows] int64 (index into the labels), and the
        labels.

    Raises:
        DataReadError: no class folder or no image, an unknown class, a file that is no image, sizes that differ.
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
            f"({', '.join(sorted(_EXTENSIONS))})"
        )
    images: list[np.ndarray] = []
    for path, _ in files:
        image, channels = _load(path, size, channels)
        if images and image.shape != images[0].shape:
            raise DataReadError(
                f"{path} is {image.shape[1]} x {image.shape[2]} and {files[0][0]} {images[0].shape[1]} x "
                f"{images[0].shape[2]} pixels (height x width); set `size: [height, width]` to scale all to one size"
            )
        images.append(image)
    return {"image": np.stack(images), "target": np.array([t for _, t in files], dtype=np.int64)}, names


def image_files(folder: Path, labels: Sequence[str]) -> list[Path]:
    """The images of these classes, in the order in which they are read."""
    found: list[Path] = []
    for name in labels:
        if (folder / name).is_dir():
            paths = (folder / name).rglob("*")
            found += sorted(p for p in paths if p.suffix.lower() in _EXTENSIONS and not p.name.startswith("."))
    return found


def _load(path: Path, size: tuple[int, int] | None, channels: int | None) -> tuple[np.ndarray, int]:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                if opened.mode not in _EIGHT_BITS:
                    raise DataReadError(f"{path} has pixels of mode {opened.mode}; convert it to 8 bits per channel")
                image = ImageOps.exif_transpose(opened)
                colours = channels or (1 if image.mode in {"1", "L", "LA"} else 3)
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
    return (pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))), colours
