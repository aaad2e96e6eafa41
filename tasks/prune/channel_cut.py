"""What goes, and its going: channels are ranked and removed step by step; no weight is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor, nn

from tasks.prune.loss_gradients import add_gradients, mean_squared_gradients
from tasks.torch_models.batchnorm import reestimate_batchnorm
from tasks.torch_models.channel_pruner import ChannelPruner, Importance, Scope
from tasks.torch_models.fit_rows import Rows
from tasks.torch_models.fit_seeding import derive, reproducible
from tasks.torch_models.objective import TrainingBatch


@dataclass(frozen=True)
class Cut:
    """Which channels go.

    Args:
        ratio: share to remove in the end; ``ratios``: another one by layer name.
        importance, scope, round_to, ignore: see :class:`tasks.torch_models.channel_pruner.ChannelPruner`.
        steps: number of equal steps in which the ratio is reached.
        batchnorm_batches: training batches over which BatchNorm's statistics are measured again after a step.
        gradient_batches: training batches whose gradients ``taylor`` adds up, or ``hessian`` squares row by row.
    """

    ratio: float
    ratios: Mapping[str, float] | None = None
    importance: Importance = "magnitude"
    scope: Scope = "local"
    steps: int = 1
    round_to: int = 1
    ignore: tuple[str, ...] = ()
    batchnorm_batches: int = 100
    gradient_batches: int = 20

    @classmethod
    def of(cls, spec: Mapping[str, Any], hints: Mapping[str, Any]) -> Cut:
        """What a stage's spec says about cutting, and the workload's hints where it says nothing."""
        names = {field.name for field in fields(cls)}
        said = {name: value for name, value in spec.items() if name in names}
        said["round_to"] = spec["round_to"] or hints.get("round_to", 1)
        said["ignore"] = (*hints.get("ignore", ()), *spec["ignore"])
        return cls(**said)


class ChannelCutter:
    """Cuts one model in place.

    Args:
        model: on the device of the rows.
        sample: preprocessed inputs by name, at least two rows, for tracing.
        rows: of the training split, for gradients and BatchNorm.
        batch_size: rows of each batch that is taken of them; ``seed``: which rows.

    Raises:
        PruningRefused: see :class:`tasks.torch_models.channel_pruner.ChannelPruner`.
    """

    def __init__(
        self, model: nn.Module, sample: dict[str, Tensor], rows: Rows, cut: Cut, *, batch_size: int, seed: int
    ) -> None:
        self.model, self.rows, self.cut, self.batch_size, self.seed = model, rows, cut, batch_size, seed
        self.pruner = ChannelPruner(
            model,
            sample,
            ratio=cut.ratio,
            ratios=dict(cut.ratios or {}),
            steps=cut.steps,
            importance=cut.importance,
            scope=cut.scope,
            round_to=cut.round_to,
            ignore=cut.ignore,
        )
        self.batchnorm_layers = 0

    def step(self, number: int) -> None:
        """Remove the next part, by gradients where they rank, and measure BatchNorm's statistics again."""
        with reproducible(self.rows.where, True):
            if self.cut.importance != "magnitude":
                leave = add_gradients if self.cut.importance == "taylor" else mean_squared_gradients
                leave(self.model, self._batches(self.cut.gradient_batches, number), self.rows.workload)
            self.pruner.step()
            self.model.zero_grad(set_to_none=True)
            batches = self._batches(self.cut.batchnorm_batches, number)
            self.batchnorm_layers = reestimate_batchnorm(self.model, (batch.inputs for batch in batches))

    def _batches(self, count: int, number: int) -> Iterator[TrainingBatch]:
        return self.rows.random_batches(count, batch_size=self.batch_size, seed=derive(self.seed, number))
