"""What two models say after the same beginnings, side by side: how often the same, and where they part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from model_registry.measurement import MetricEstimate
from model_registry.variant import Frozen
from tasks.evidence.paired import summarise_pairs

Said = Sequence[Sequence[int]]
"""An answer: the bytes of each of its tokens."""


class SideBySide(Frozen):
    """One text: its beginning, how it goes on itself, and how both go on."""

    prompt: str
    text: str
    same: str
    """What both say alike, from the first token on."""
    tokens: int
    """Of it."""
    baseline: str
    """What the baseline says behind that; '' where it says nothing else."""
    chosen: str


class Continuations(Frozen):
    """Greedy continuations by a variant and by its baseline, of texts that nothing was chosen on."""

    prompt_tokens: int
    new_tokens: int
    """Of each answer, at most."""
    kept: MetricEstimate
    """The share of an answer's tokens that both say, until they part: the mean over prompts."""
    alike: MetricEstimate
    """The share of prompts after which both say the same to the end."""
    prompts: int
    shown: tuple[SideBySide, ...]


def compare_continuations(
    texts: Sequence[tuple[str, str]],
    chosen: Sequence[Said],
    baseline: Sequence[Said],
    *,
    prompt_tokens: int,
    new_tokens: int,
    shown: int,
) -> Continuations:
    """Compare answers to the same prompts.

    Args:
        texts: of each prompt, itself and how its text goes on.
        chosen, baseline: answers by prompt.
        shown: how many of them are kept for people, from the first on.
    """
    parted = [_alike(*both) for both in zip(chosen, baseline, strict=True)]
    longest = [max(len(own), len(other)) for own, other in zip(chosen, baseline, strict=True)]
    kept = [count / most if most else 1.0 for count, most in zip(parted, longest, strict=True)]
    same = [float(count == most) for count, most in zip(parted, longest, strict=True)]
    return Continuations(
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        kept=summarise_pairs(np.array(kept), name="share", better="higher"),
        alike=summarise_pairs(np.array(same), name="share", better="higher"),
        prompts=len(texts),
        shown=tuple(
            SideBySide(
                prompt=shown_text(prompt),
                text=shown_text(text),
                same=_text(baseline[row][: parted[row]]),
                tokens=parted[row],
                baseline=_text(baseline[row][parted[row] :]),
                chosen=_text(chosen[row][parted[row] :]),
            )
            for row, (prompt, text) in enumerate(texts[:shown])
        ),
    )


def shown_text(text: str) -> str:
    """The text with a mark for every character that a page does not show, or that turns the direction of others."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _alike(chosen: Said, baseline: Said) -> int:
    """Tokens from the first on that both say."""
    pairs = enumerate(zip(chosen, baseline, strict=False))
    return next((place for place, (own, other) in pairs if own != other), min(len(chosen), len(baseline)))


def _text(tokens: Said) -> str:
    return shown_text(b"".join(map(bytes, tokens)).decode(errors="replace"))
