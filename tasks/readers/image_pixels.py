"""Pixels of images as models take them, and what is said of many."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np

from tasks.readers.reading import Reading, counts_text
from tasks.running.errors import DataReadError

_GREY = {"1", "L", "LA"}
_ALPHA = "with alpha"
_EIGHT_BITS = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Those of the endings that are read. Pillow knows more, of which one (EPS) starts another program."""


def read_pixels(
    file: Path | IO[bytes], where: str, size: tuple[int, int] | None, channels: int | None
) -> tuple[np.ndarray, str]:
    """The pixels [channels, height, width] uint8, and the file's mode, ``with alpha`` where it has some.

    Args:
        where: the file for people.
        size: (height, width) to scale to; None: as it is.
        channels: 1 (grey) or 3 (colour); None: 3 where it has colour.

    Raises:
        DataReadError: it is no image, a damaged one, or not of 8 bits.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=_FORMATS) as opened:
                if opened.mode not in _EIGHT_BITS:
                    raise DataReadError(f"{where} has pixels of mode {opened.mode}; convert it to 8 bits per channel")
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
        raise DataReadError(f"{where} cannot be read as an image: {error}; repair it or take it out") from error
    return (pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))), mode


def with_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """Images [rows, 1 or 3, height, width] with that many channels: grey ones become colour without changing."""
    return images if images.shape[1] == channels else np.repeat(images, channels, axis=1)


def image_reading(name: str, counts: Mapping[str, int], modes: Counter[str], shape: tuple[int, ...]) -> Reading:
    """What images are, in sentences.

    Args:
        name: of where they are.
        counts: images by class. ``modes``: by mode, as :func:`read_pixels` says it.
        shape: of all of them, [rows, channels, height, width].
    """
    rows, channels, height, width = shape
    shown = ", ".join(f"{mode} {count}" for mode, count in sorted(modes.items()))
    facts = (
        f"{name}: {rows} images of {len(counts)} classes: {counts_text(counts)}.",
        f"{name}: read as {height} x {width} pixels in {'grey' if channels == 1 else 'colour'}; modes: {shown}.",
    )
    findings = []
    grey = sum(count for mode, count in modes.items() if mode.split()[0] in _GREY)
    if 0 < grey < rows:
        how = "grey, as asked" if channels == 1 else "colour; to read them in grey, set `channels: 1`"
        findings.append(f"{name}: {grey} of {rows} images are grey and the others have colour; all are read in {how}")
    alpha = sum(count for mode, count in modes.items() if _ALPHA in mode)
    if alpha:
        findings.append(f"{name}: {alpha} of {rows} images have an alpha channel, which is left out")
    return Reading(facts, tuple(findings))
