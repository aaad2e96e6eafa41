"""A model of sequences: from which of four made-up languages is a word?"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tasks.running.splits import TARGET, Columns
from tasks.workloads.architectures import scaled

LETTERS = 20
LANGUAGES = 4
LENGTH = 24
_ROWS = {"train": 4000, "calibration": 500, "validation": 1500, "test": 3000}


class LetterSequences:
    """One input ``letters``, INT64 [N, length], values 0 to 19; four classes.

    A language is a table of how likely each letter follows each other, so that only the order of the letters tells
    them apart. Training sees 24 letters; the exported model takes any length.

    Args:
        share: of the words, 4 000 to train with and 3 000 to test on; less for quick runs.
    """

    def __init__(self, share: float = 1.0) -> None:
        self.share = share

    def splits(self) -> dict[str, Columns]:
        """``letters`` [rows, 24] and ``target``, the number of the language."""
        random = np.random.default_rng(0)
        follows = random.dirichlet(np.full(LETTERS, 0.6), (LANGUAGES, LETTERS)).cumsum(axis=2)
        return {name: _words(follows, round(rows * self.share), random) for name, rows in _ROWS.items()}

    def model(self, role: str, width: float = 1.0) -> nn.Module:
        """A :class:`LetterTransformer`; ``width`` scales its features."""
        return LetterTransformer(scaled(32, width))

    def labels(self) -> list[str]:
        return [f"language {number}" for number in range(LANGUAGES)]

    def dynamic_dims(self) -> dict[str, dict[int, str]]:
        """The second dimension of ``letters`` may vary from request to request."""
        return {"letters": {1: "length"}}


class LetterTransformer(nn.Module):
    """Embedding, a convolution over neighbours, self-attention, dense layers.

    Takes ``letters`` INT64 [N, length] and answers logits [N, 4], from the mean over the letters.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(LETTERS, features)
        self.neighbours = nn.Conv1d(features, features, 3, padding=1)
        self.queries = nn.Linear(features, features)
        self.keys = nn.Linear(features, features)
        self.values = nn.Linear(features, features)
        self.norm = nn.LayerNorm(features)
        self.dense = nn.Linear(features, 2 * features)
        self.head = nn.Linear(2 * features, LANGUAGES)

    def forward(self, letters: Tensor) -> Tensor:
        embedded = self.embedding(letters)
        hidden = torch.relu(self.neighbours(embedded.transpose(1, 2))).transpose(1, 2)
        weights = torch.softmax(
            self.queries(hidden) @ self.keys(hidden).transpose(1, 2) / hidden.shape[2] ** 0.5, dim=2
        )
        hidden = self.norm(hidden + weights @ self.values(hidden))
        logits: Tensor = self.head(torch.relu(self.dense(hidden)).mean(dim=1))
        return logits


def _words(follows: np.ndarray[Any, np.dtype[np.float64]], rows: int, random: np.random.Generator) -> Columns:
    target = random.integers(0, LANGUAGES, rows)
    letters = np.zeros((rows, LENGTH), dtype=np.int64)
    letters[:, 0] = random.integers(0, LETTERS, rows)
    for place in range(1, LENGTH):
        chances = follows[target, letters[:, place - 1]]
        letters[:, place] = (random.random((rows, 1)) > chances).sum(axis=1).clip(max=LETTERS - 1)
    return {"letters": letters, TARGET: target}
