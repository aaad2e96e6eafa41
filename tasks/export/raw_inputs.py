"""Preprocessing and model as one module: raw inputs in, one tensor out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

Inputs = dict[str, Tensor]


class RawInputs(nn.Module):
    """What is exported and served: the workload's preprocessing, then the model.

    Args:
        model: takes the preprocessed inputs by name.
        preprocess: raw inputs by name to preprocessed inputs by name; must be traceable.
        names: of the raw inputs, in the order of the positional arguments of ``forward``.
    """

    def __init__(self, model: nn.Module, preprocess: Callable[[Inputs], Inputs], names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.preprocess = preprocess
        self.names = names

    def forward(self, *columns: Tensor) -> Any:
        return self.model(**self.preprocess(dict(zip(self.names, columns, strict=True))))
