"""How many questions a language model answers right: by the likeliest choice, as a whole and for each of its bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from model_registry.measurement import MetricEstimate, PairedComparison
from model_registry.variant import Frozen
from tasks.evidence.arrays import Array
from tasks.evidence.paired import Scores, compare_paired, summarise_pairs

if TYPE_CHECKING:
    from tasks.workloads.choice_questions import ChoiceRows


class ChoiceScores(Frozen):
    """Shares of right answers, and beside the baseline's to the same questions."""

    by_sum: MetricEstimate
    """By the sum of the log-probabilities of a choice's tokens."""
    per_byte: MetricEstimate
    """By that sum for each byte of the choice, so that long ones are not at a disadvantage."""
    to_baseline: PairedComparison | None = None
    """By the sum; None for the baseline itself, as is the next."""
    per_byte_to_baseline: PairedComparison | None = None


def right_answers(rows: ChoiceRows, log_probabilities: Array) -> tuple[Scores, Scores]:
    """1 where the right choice is likelier than every other one, else 0, by question: by the sum, and per byte.

    Args:
        log_probabilities: [rows, length - 1], of each token after the first.
    """
    summed = np.pad(log_probabilities.astype(np.float64).cumsum(axis=1), ((0, 0), (1, 0)))
    at = np.arange(len(summed))
    sums = summed[at, rows.ends - 1] - summed[at, rows.begins - 1]
    return _right(rows, sums), _right(rows, sums / rows.bytes)


def choice_scores(
    found: tuple[Scores, Scores], reference: tuple[Scores, Scores] | None, *, digest: str
) -> ChoiceScores:
    """Of answers as :func:`right_answers` gives them.

    Args:
        reference: those of the baseline, whose digest is given; None for the baseline itself.
    """
    by_sum, per_byte = (summarise_pairs(scores, name="accuracy", better="higher") for scores in found)
    if reference is None:
        return ChoiceScores(by_sum=by_sum, per_byte=per_byte)
    paired = [
        compare_paired(own, other, better="higher", reference=digest)
        for own, other in zip(found, reference, strict=True)
    ]
    return ChoiceScores(by_sum=by_sum, per_byte=per_byte, to_baseline=paired[0], per_byte_to_baseline=paired[1])


def _right(rows: ChoiceRows, scores: Scores) -> Scores:
    count = int(rows.question[-1]) + 1
    others = np.full(count, -np.inf)
    np.maximum.at(others, rows.question[~rows.right], scores[~rows.right])
    found: Scores = (scores[rows.right] > others).astype(np.float64)
    return found
