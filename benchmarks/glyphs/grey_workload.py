"""A task that nobody tuned for: small grey images, whose test split is set in faces that no other split has."""

from __future__ import annotations

from glyph_images import CLASSES, FACES, grey_images
from torch import nn

from tasks.running.splits import Columns
from tasks.workloads.vgg import VggClassifier
from tasks.workloads.workload import Inputs

ROWS = {"train": 20_000, "calibration": 1_000, "validation": 4_000, "test": 4_000}
UNSEEN = ("DejaVuSerif-Bold", "DejaVuSansMono-Oblique", "STIXGeneralBol", "cmr10")
"""Faces of the test split, each with relatives among those of the other splits."""
_SIZE = 28


class GreyGlyphs:
    """One input ``image``, raw pixels [N, 1, 28, 28] (UINT8), for a VGG of a million weights.

    Args:
        rows: rows by split, where fewer are wanted than the benchmark's.
    """

    def __init__(self, rows: dict[str, int] | None = None) -> None:
        self.rows = {**ROWS, **(rows or {})}

    def splits(self) -> dict[str, Columns]:
        made: dict[str, Columns] = {}
        for number, (split, rows) in enumerate(self.rows.items()):
            faces = UNSEEN if split == "test" else tuple(face for face in FACES if face not in UNSEEN)
            images, labels = grey_images(rows, 100 + number, faces)
            made[split] = {"image": images, "target": labels}
        return made

    def model(self, role: str) -> nn.Module:
        """The same network whatever the role: nothing can be scaled from outside."""
        return VggClassifier(shape=(1, _SIZE, _SIZE), classes=len(CLASSES))

    def preprocess(self, inputs: Inputs) -> Inputs:
        return {"image": inputs["image"].float() / 64 - 2}

    def labels(self) -> list[str]:
        return list(CLASSES)
