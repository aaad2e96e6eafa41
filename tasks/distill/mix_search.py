"""Temperature and the teacher's share, tried on a small grid where the spec leaves them open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tasks.running.errors import TrainingDiverged
from tasks.torch_models.fit import Fitted

TEMPERATURES = (1.0, 2.0, 4.0, 8.0)
ALPHAS = (0.5, 0.9)
"""Hinton et al. 2015, section 2, got the best results with a considerably lower weight on the targets."""


@dataclass(frozen=True)
class Mix:
    """What the distillation loss is made of."""

    temperature: float
    alpha: float


@dataclass(frozen=True)
class MixTrial:
    """A short training with one mix. ``val_loss`` is the workload's own, the lowest of its epochs; None: diverged."""

    temperature: float
    alpha: float
    epochs: int
    val_loss: float | None
    val_metric: float | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def candidates(
    temperature: float | Literal["auto"], alpha: float | Literal["auto"], *, softened: bool
) -> tuple[Mix, ...]:
    """All mixes to try; the one there is where neither is open. Only logits are ``softened`` by a temperature."""
    temperatures: Sequence[float] = (temperature,) if temperature != "auto" else TEMPERATURES
    if temperature == "auto" and not softened:
        temperatures = (1.0,)
    alphas: Sequence[float] = (alpha,) if alpha != "auto" else ALPHAS
    return tuple(Mix(t, a) for t in temperatures for a in alphas)


def search_mix(mixes: Sequence[Mix], train: Callable[[int, Mix], Fitted]) -> tuple[Mix, list[MixTrial]]:
    """The mix of the lowest validation loss, the first among equals, and all trials.

    The loss and not the metric: accuracy after a short training tells hardly any two mixes apart.

    Args:
        mixes: to be tried; a single one is taken as it is.
        train: a short training of a fresh model with the mix of this number.

    Raises:
        TrainingDiverged: every training diverged.
    """
    if len(mixes) == 1:
        return mixes[0], []
    trials: list[MixTrial] = []
    diverged: TrainingDiverged | None = None
    for number, mix in enumerate(mixes):
        try:
            fitted = train(number, mix)
        except TrainingDiverged as error:  # one mix too hot: the others may do
            diverged = error
            trials.append(MixTrial(mix.temperature, mix.alpha, 0, None, None))
            continue
        best = min(fitted.history, key=lambda row: row["val_loss"])
        epochs = len(fitted.history)
        trials.append(MixTrial(mix.temperature, mix.alpha, epochs, float(best["val_loss"]), float(best["val_metric"])))
    scored = [(trial.val_loss, number) for number, trial in enumerate(trials) if trial.val_loss is not None]
    if diverged is not None and not scored:
        raise diverged
    return mixes[min(scored)[1]], trials
