"""Answers with a class for each pixel, as pictures beside the one that was asked about."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.evidence.scoring import builtin_scores, top_classes

Pixels = NDArray[np.uint8]
_COLOURS = np.array(
    [
        (40, 44, 52), (86, 156, 214), (230, 145, 56), (106, 168, 79), (204, 65, 82), (142, 124, 195),
        (241, 194, 50), (69, 187, 183), (214, 125, 190), (160, 120, 90),
    ],
    np.uint8,
)  # fmt: skip
"""Of the classes, the first one dark: it is mostly the background. They repeat."""
_UNKNOWN = (128, 128, 128)
"""Of what is labelled as no class, and where the answer is no number."""


def right_texts(outputs: NDArray[Any], targets: NDArray[Any]) -> list[str]:
    """By sample, the share of the places that are right."""
    return [f"{100 * share:.1f} % right" for share in builtin_scores("pixel_accuracy", outputs, targets)]


def four_pictures(pictures: Pixels, targets: NDArray[Any], answers: tuple[NDArray[Any], NDArray[Any]]) -> Pixels:
    """Each picture with the true classes to its right and both answers below: [N, 2 H, 2 W, 3].

    Args:
        pictures: [N, H, W, C].
        targets: [N, H, W]; ``answers``: logits [N, K, H, W] each.
    """
    shown = pictures[..., :3] if pictures.shape[3] >= 3 else pictures[..., :1].repeat(3, axis=3)
    classes = answers[0].shape[1]
    true, first, second = (_coloured(found, classes) for found in (targets, *map(top_classes, answers)))
    above, below = np.concatenate([shown, true], axis=2), np.concatenate([first, second], axis=2)
    return np.concatenate([above, below], axis=1)


def _coloured(found: NDArray[Any], classes: int) -> Pixels:
    known = (found >= 0) & (found < classes)
    pixels: Pixels = _COLOURS[np.where(known, found, 0) % len(_COLOURS)]
    pixels[~known] = _UNKNOWN
    return pixels
