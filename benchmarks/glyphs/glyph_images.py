"""The images of the benchmark: printed characters in the wild, drawn from the fonts that matplotlib brings along.

A character in one of 26 faces is turned, sheared, scaled, thickened or thinned, coloured, put between parts of its
neighbours on an uneven ground, partly hidden, blurred and covered with noise. Everything comes from the seed.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

CLASSES = "23456789ABCDEFGHJKLMNPQRSTUVWXYZabdeghqt"
"""40 characters; those that are told apart by their size alone (o and O, 1 and I) are left out."""
FACES = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-BoldOblique", "DejaVuSans-Oblique", "DejaVuSansMono",
    "DejaVuSansMono-Bold", "DejaVuSansMono-BoldOblique", "DejaVuSansMono-Oblique", "DejaVuSerif", "DejaVuSerif-Bold",
    "DejaVuSerif-BoldItalic", "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBol", "STIXGeneralBolIta",
    "STIXGeneralItalic", "cmb10", "cmr10", "cmss10", "cmtt10",
)  # fmt: skip
SIZE = 32
_DRAWN = 64
_EDGE = 2
_CHUNK = 4096


def glyph_images(rows: int, seed: int, faces: tuple[str, ...] = FACES) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """``rows`` images, uint8 [rows, 3, 32, 32], and their classes, int64 [rows], in random order, in these faces."""
    inks = masks(faces)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(len(CLASSES), (rows,), generator=generator)
    images = [_scene(inks, part, generator) for part in torch.split(labels, _CHUNK)]
    return torch.cat(images).numpy(), labels.numpy()


@cache
def grey_images(rows: int, seed: int, faces: tuple[str, ...] = FACES) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The same without colours and without an edge of two pixels, uint8 [rows, 1, 28, 28]."""
    images, labels = glyph_images(rows, seed, faces)
    inner: Any = images[:, :, _EDGE:-_EDGE, _EDGE:-_EDGE].mean(axis=1, keepdims=True)
    return np.rint(inner).astype(np.uint8), labels


def masks(faces: tuple[str, ...]) -> Tensor:
    """Each character in each face, float [faces, classes, 64, 64], ink 1 on ground 0."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    drawn = np.zeros((len(faces), len(CLASSES), _DRAWN, _DRAWN), dtype=np.float32)
    for f, face in enumerate(faces):
        font = ImageFont.truetype(str(folder / f"{face}.ttf"), 46)
        for c, character in enumerate(CLASSES):
            image = Image.new("L", (_DRAWN, _DRAWN))
            ImageDraw.Draw(image).text((_DRAWN / 2, _DRAWN / 2), character, fill=255, font=font, anchor="mm")
            drawn[f, c] = np.asarray(image, dtype=np.float32) / 255
    return torch.from_numpy(drawn)


def _scene(inks: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """uint8 [n, 3, 32, 32]."""
    n = len(labels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand((n, *shape), generator=generator)

    faces = torch.randint(len(inks), (n,), generator=generator)
    scale, shift = uniform(1.1, 1.6), uniform(-0.12, 0.12, 2)
    ink = placed(inks[faces, labels], uniform(-0.3, 0.3), uniform(-0.25, 0.25), scale, shift)
    # Parts of the neighbours in the same face, as in house numbers and plates.
    for side in (-1.0, 1.0):
        others = torch.randint(len(CLASSES), (n,), generator=generator)
        beside = torch.stack([shift[:, 0] + side * uniform(0.85, 1.2) / scale, shift[:, 1] + uniform(-0.1, 0.1)], dim=1)
        there = (uniform(0, 1) < 0.5).float()[:, None, None]
        ink = torch.maximum(
            ink, there * placed(inks[faces, others], uniform(-0.3, 0.3), uniform(-0.25, 0.25), scale, beside)
        )
    thick = (ink - uniform(0.1, 0.4, 1, 1)) * uniform(3, 8, 1, 1)
    ink = thick.clamp(0, 1)[:, None] * uniform(0.8, 1.0, 1, 1, 1)

    ground, colour = uniform(0, 1, 3, 1, 1), uniform(0, 1, 3, 1, 1)
    # Ink must be seen: where the colours are too near in brightness it takes the other end.
    near = (ground.mean(1, keepdim=True) - colour.mean(1, keepdim=True)).abs() < 0.4
    colour = torch.where(near, (colour + 0.5).remainder(1.0), colour)
    coarse = torch.randn((n, 3, 5, 5), generator=generator)
    texture = functional.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic", align_corners=True)
    ground = ground + texture * uniform(0.0, 0.1, 1, 1, 1)
    image = ground * (1 - ink) + colour * ink

    # A bar across, in the colour of neither.
    y, x = torch.meshgrid(torch.linspace(-1, 1, SIZE), torch.linspace(-1, 1, SIZE), indexing="ij")
    angle, offset, width = uniform(0, np.pi, 1, 1), uniform(-0.8, 0.8, 1, 1), uniform(0.03, 0.08, 1, 1)
    bar = ((x * torch.cos(angle) + y * torch.sin(angle) - offset).abs() < width) & (uniform(0, 1, 1, 1) < 0.25)
    image = torch.where(bar[:, None], uniform(0, 1, 3, 1, 1), image)

    soft = functional.avg_pool2d(functional.pad(image, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
    blur = uniform(0, 1, 1, 1, 1)
    image = image * (1 - blur) + soft * blur
    image = image + torch.randn(image.shape, generator=generator) * uniform(0.01, 0.06, 1, 1, 1)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


def placed(ink: Tensor, turn: Tensor, shear: Tensor, scale: Tensor, shift: Tensor, size: int = SIZE) -> Tensor:
    """Masks [n, 64, 64] turned (radians), sheared, scaled and shifted (half image sizes) onto [n, size, size]."""
    cos, sin = torch.cos(turn) / scale, torch.sin(turn) / scale
    rows = torch.stack([cos, sin + shear * cos, -shift[:, 0], -sin, cos - shear * sin, -shift[:, 1]], dim=1)
    grid = functional.affine_grid(rows.reshape(-1, 2, 3), [len(ink), 1, size, size], align_corners=False)
    # Half the resolution: each pixel is the mean of four samples.
    small = functional.avg_pool2d(ink[:, None], 2)
    return functional.grid_sample(small, grid, align_corners=False)[:, 0]
