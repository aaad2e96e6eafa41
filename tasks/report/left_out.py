"""What the stages left out and why, in sentences: a method that was skipped, a layer that a tool leaves alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tasks.running.stage import Outcome

_NAMED = 6
"""Models or layers named in a sentence."""


def omitted(outcomes: Iterable[Outcome]) -> tuple[str, ...]:
    """One sentence for each reason, with all the models that it holds for.

    Args:
        outcomes: of every stage; those that say nothing about it are passed over.
    """
    models: dict[tuple[str, str], list[str]] = {}
    for outcome in outcomes:
        unnamed = "pruned" if outcome.stage == "prune" else outcome.stage
        for what, why in _reasons(outcome.stage, outcome.values):
            models.setdefault((what, why), []).append(outcome.name.partition(":")[2] or unnamed)
    return tuple(
        f"Left out: {what} of {_several(dict.fromkeys(names))}: {why.rstrip('.')}."
        for (what, why), names in models.items()
    )


def _reasons(stage: str, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if stage == "quantize":
        yield from values.get("skipped", {}).items()
        for part in ("equalization", "bias_correction"):
            if skipped := values.get(part, {}).get("skipped", ()):
                yield part.replace("_", " "), _several(skipped)
        for method, control in values.get("accuracy_control", {}).items():
            if groups := control.get("fp32_groups"):
                yield f"{method} quantization of some layers", f"accuracy control kept {_several(groups)} in fp32"
    if stage == "prune":
        if untraced := values.get("untraced"):
            yield "pruning of some layers", f"{_several(untraced)}: autograd from the answer does not reach them"
        alone = values.get("left_alone", {})
        for why in dict.fromkeys(alone.values()):
            yield "pruning of some layers", f"{_several(name for name in alone if alone[name] == why)}: {why}"


def _several(names: Iterable[str]) -> str:
    given = list(names)
    more = f" and {len(given) - _NAMED} more" if len(given) > _NAMED else ""
    return f"{', '.join(given[:_NAMED])}{more}"
