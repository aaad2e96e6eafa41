"""What is asked of a language model and cannot be had, or of another model, is refused before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence

from flows.spec import PipelineSpec
from model_registry.variant import Variant
from tasks.evidence.proportion import loss_bound, samples_needed
from tasks.running.errors import GateFailed, SpecError
from tasks.running.splits import DataRef
from tasks.running.stage import Outcome

_WITH_4_BITS = ("weights4", "mixed")
"""Methods whose files of a language model qat trains."""


def refuse_misplaced(spec: PipelineSpec, data: DataRef) -> None:
    """Refuse a budget or a form for language models where there is none, or of nats where the metric is another one,
    and training of 4 bits where there are none.

    Raises:
        SpecError: names the key, its value, and what to say instead.
        GateFailed: there are too few questions to ever prove that so little is lost.
    """
    gates, budget = spec.gates, spec.budget
    said = {
        "max_nats_increase": budget.max_nats_increase if budget else None,
        "max_choice_drop": gates.max_choice_drop,
        "min_tokens_per_second": gates.min_tokens_per_second,
        "max_ttft_ms": gates.max_ttft_ms,
    }
    named = [f"budget.{key} {value:g}" for key, value in said.items() if value is not None]
    if named and data.language is None:
        raise SpecError(
            f"{', '.join(named)}: only a language model has such a limit, and {spec.workload.path} makes none; use "
            "max_accuracy_drop, p95_ms or min_speedup"
        )
    if spec.quantize is not None and spec.quantize.kv_cache != "float32" and data.language is None:
        raise SpecError(
            f"quantize.kv_cache {spec.quantize.kv_cache}: only a model that continues text keeps keys and values, and "
            f"{spec.workload.path} makes none; remove the key"
        )
    methods = spec.quantize.methods if spec.quantize else ()
    if "mixed" in methods and data.language is None:
        raise SpecError(
            "quantize.methods mixed: bits are mixed by what a model that continues text says, and "
            f"{spec.workload.path} makes none; use weights8 or weights4"
        )
    if said["max_nats_increase"] is not None and data.metric.name != "nats":
        raise SpecError(
            f"budget.max_nats_increase {said['max_nats_increase']:g} is of the metric nats, and {spec.workload.path} "
            f"is judged by {data.metric.name}; use max_accuracy_drop, in its unit"
        )
    if spec.qat is not None and data.language is not None:
        if spec.search:
            raise SpecError(
                "qat: a search trains no language model's 4 bits; remove qat, or name the forms and no search"
            )
        if not set(_WITH_4_BITS) & set(methods):
            raise SpecError(
                "qat trains what weights4 or mixed makes of a language model, and quantize.methods is "
                f"[{', '.join(methods)}]; add one of them, or remove qat"
            )
    drop = said["max_choice_drop"]
    if drop is None or data.language is None:
        return
    count = data.language.count
    if not count:
        raise SpecError(
            f"budget.max_choice_drop {drop:g} is of answers to questions, and the workload has none; name a file of "
            "them as the argument questions, or remove the key"
        )
    if loss_bound(0, 0, count) > drop:
        raise GateFailed(
            f"budget.max_choice_drop {drop:g} can never be proven on {count} questions: even a variant with the very "
            f"same answers leaves a 95 % bound of {loss_bound(0, 0, count):.4f}. It takes at least "
            f"{samples_needed(drop)} questions; bring more, or set it to {loss_bound(0, 0, count):.4f} or more",
            needed=samples_needed(drop),
            samples=count,
        )


def refuse_size(spec: PipelineSpec, quantized: Sequence[Outcome]) -> None:
    """Refuse a size of mixed bits that none of the models can have. Outcomes that are only planned say nothing.

    Raises:
        SpecError: names the size, and those that there are.
    """
    reasons = [outcome.values.get("skipped", {}).get("mixed") for outcome in quantized]
    if reasons and all(reasons):
        raise SpecError(f"quantize.methods mixed: {reasons[-1]}")


def trainable(quantized: Outcome, data: DataRef) -> tuple[Variant, ...]:
    """Files that qat trains: static int8; of a language model those with weights of 4 bits."""
    made = [quantized.by_role(method) for method in (_WITH_4_BITS if data.language else ("static",))]
    facts = quantized.values.get("variants", {})

    def all_in_8(variant: Variant) -> bool:  # mixed, in the size that was asked for
        groups = facts.get(variant.digest, {}).get("groups", {})
        return bool(groups) and all(group["bits"] == 8 for group in groups.values())

    return tuple(variant for variant in made if variant is not None and not all_in_8(variant))
