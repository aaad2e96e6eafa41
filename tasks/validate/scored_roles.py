"""Each role's variant as the gates look at it: its scores on one split, alone and beside the others."""

from __future__ import annotations

from collections.abc import Mapping

from model_registry.measurement import ClassLoss, PairedComparison
from model_registry.variant import Variant
from tasks.evidence.arrays import Array
from tasks.evidence.class_loss import class_losses
from tasks.evidence.decision import Scored
from tasks.evidence.paired import Scores, compare_paired, summarise_pairs
from tasks.evidence.scoring import per_class
from tasks.running.splits import DataRef


def scored_roles(
    variants: Mapping[str, Variant], scores: Mapping[str, Scores], targets: Array, data: DataRef
) -> dict[str, Scored]:
    """By role, in the order given.

    Args:
        variants: by role: ``chosen``, ``baseline`` and perhaps ``champion``; all are compared with the baseline, the
            chosen one with the champion too.
        scores: by digest, [N] each; ``targets``: [N, ...].
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

    return {
        role: Scored(
            digest=variant.digest,
            name=variant.name,
            role=role,
            metric=summarise_pairs(scores[variant.digest], name=data.metric.name, better=better),
            per_class=per_class(data, scores[variant.digest], targets),
            class_losses=lost(variant),
            to_baseline=paired(variant, "baseline"),
            to_champion=paired(variant, "champion") if role == "chosen" else None,
        )
        for role, variant in variants.items()
    }
