"""Which of a transformer's layers a model of fewer has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tasks.running.errors import SpecError


def how_many(layers: str | int, whole: int, shares: Mapping[str, float], *, least: int) -> int:
    """Layers that are kept of ``whole`` ones.

    Args:
        layers: the name of a share, or how many.
        least: that a share comes to.

    Raises:
        SpecError: it is no share that is known, and no number of them.
    """
    if isinstance(layers, int):
        if not 1 <= layers <= whole:
            raise SpecError(f"layers {layers} must be from 1 to {whole}, which is what the model has")
        return layers
    if layers not in shares:
        raise SpecError(f"layers {layers!r} must be one of {', '.join(shares)}, a number, or numbers of them")
    return min(whole, max(least, round(whole * shares[layers])))


def named_layers(layers: Sequence[int], whole: int) -> list[int]:
    """The numbers as they are named.

    Raises:
        SpecError: there are none, they do not ascend, or the model has no such layers.
    """
    numbers = [*layers]
    if not numbers or numbers != sorted({*numbers} & {*range(whole)}):
        raise SpecError(f"layers {numbers} must be ascending numbers from 0 to {whole - 1}")
    return numbers
