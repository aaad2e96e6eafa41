"""Each role's variant as the gates look at it: its scores on one split, alone and beside the others."""

from __future__ import annotations

from collections.abc import Mapping

from model_registry.measurement import ClassLoss, PairedComparison
from model_registry.variant import Variant
from tasks.evidence.arrays import Array
from tasks.evidence.choice_scores import ChoiceScores, choice_scores
from tasks.evidence.class_loss import class_losses
from tasks.evidence.decision import Scored
from tasks.evidence.paired import Scores, compare_paired, summarise_pairs
from tasks.evidence.scoring import per_class
from tasks.running.splits import DataRef


def scored_roles(
    variants: Mapping[str, Variant],
    scores: Mapping[str, Scores],
    targets: Array,
    data: DataRef,
    *,
    bits: Mapping[str, float | None] | None = None,
    answers: Mapping[str, tuple[Scores, Scores]] | None = None,
) -> dict[str, Scored]:
    """By role, in the order given.

    Args:
        variants: by role: ``chosen``, ``baseline`` and perhaps ``champion``; all are compared with the baseline, the
            chosen one with the champion too.
        scores: by digest, [N] each; ``targets``: [N, ...].
        bits: of a language model, by digest: what a byte of the texts costs.
        answers: of a language model with questions, by digest, as :func:`tasks.evidence.choice_scores.right_answers`
            gives them.
    """
    better = data.metric.better

    def paired(variant: Variant, other: str) -> PairedComparison | None:
        reference = variants.get(other)
        if reference is None or reference.digest == variant.digest:
            return None
        return compare_paired(
            scores[variant.digest], scores[reference.digest], better=better, reference=reference.digest
        )

    def lost(variant: Variant) -> dict[str, ClassLoss]:
        reference = variants.get("baseline")
        if reference is None or reference.digest == variant.digest:
            return {}
        return class_losses(data, scores[variant.digest], scores[reference.digest], targets)

    def asked(variant: Variant) -> ChoiceScores | None:
        if not answers:
            return None
        baseline = variants["baseline"].digest
        reference = None if variant.digest == baseline else answers[baseline]
        return choice_scores(answers[variant.digest], reference, digest=baseline)

    return {
        role: Scored(
            digest=variant.digest,
            name=variant.name,
            role=role,
            metric=summarise_pairs(scores[variant.digest], name=data.metric.name, better=better),
            bits_per_byte=(bits or {}).get(variant.digest),
            choices=asked(variant),
            per_class=per_class(data, scores[variant.digest], targets),
            class_losses=lost(variant),
            to_baseline=paired(variant, "baseline"),
            to_champion=paired(variant, "champion") if role == "chosen" else None,
        )
        for role, variant in variants.items()
    }
