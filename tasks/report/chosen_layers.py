"""What became of the chosen variant's layers: how many channels they kept, and which stayed in fp32."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field

from model_registry.variant import Frozen
from tasks.running.stage import Outcome


class GroupGrid(Frozen):
    """How a group of weights was rounded, where bits are mixed."""

    bits: int
    block: int
    """Weights that share a scale."""
    bytes: int
    damage: float
    """Nats a token that it costs alone, as measured before the choice; 0 in 8 bits."""


class Precision(Frozen):
    """What quantization did, as the quantize stage counted it."""

    quantized: int
    quantizable: int
    share: float | None = None
    """Part of the multiply-accumulates that is computed in small numbers; None if not known."""
    fp32_layers: tuple[str, ...] = ()
    """Layers that stayed in fp32: ``Conv stem.weight [8, 3, 3, 3]``."""
    groups: dict[str, GroupGrid] = Field(default_factory=dict)
    """By name, where bits are mixed."""


class ChosenLayers(Frozen):
    """The layers of the chosen variant."""

    channels: dict[str, tuple[int, int]] = Field(default_factory=dict)
    """Channels before and after pruning, by layer; empty where nothing was pruned."""
    precision: Precision | None = None
    """None where it was not quantized."""


def chosen_layers(
    chosen: str, outcomes: Iterable[Outcome], parents: Mapping[str, tuple[str, ...]]
) -> ChosenLayers | None:
    """Look up what the stages that made the variant say about its layers; None where they say nothing.

    Args:
        chosen: digest of the variant.
        outcomes: of every stage that made variants.
        parents: digests of what each variant was made from, by its digest, the one it changes first.
    """
    made = {v.digest: outcome for outcome in outcomes for v in outcome.variants}
    channels: dict[str, tuple[int, int]] = {}
    precision = None
    current: str | None = chosen
    seen: set[str] = set()
    while current is not None and current not in seen:
        seen.add(current)
        outcome = made.get(current)
        if outcome is not None:
            precision = precision or _precision(outcome.values.get("variants", {}).get(current, {}))
            channels = channels or _channels(outcome.values.get("layers", {}))
        current = next(iter(parents.get(current, ())), None)
    return ChosenLayers(channels=channels, precision=precision) if channels or precision else None


def _precision(values: Mapping[str, Any]) -> Precision | None:
    known = {name: values[name] for name in Precision.model_fields if name in values}
    return Precision.model_validate(known) if {"quantized", "quantizable"} <= known.keys() else None


def _channels(layers: Any) -> dict[str, tuple[int, int]]:
    if not isinstance(layers, Mapping):
        return {}
    return {str(name): (int(pair[0]), int(pair[1])) for name, pair in layers.items() if len(pair) == 2}
