"""The pruning plan: which channels were removed, as JSON; with the unpruned class it rebuilds the pruned structure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tasks.running.errors import PruningRefused
from tasks.torch_models.model_blame import blame

Plan = list[tuple[str, bool, list[int]]]
"""In order: module name, whether its output channels (else input), the indices removed at that moment."""


def dependency_graph(model: nn.Module, inputs: dict[str, Tensor]) -> Any:
    """torch-pruning's dependency graph of the model (Fang et al. 2023, "DepGraph", arXiv:2301.12900).

    Args:
        model: switched to evaluation.
        inputs: preprocessed inputs by name, two rows or more.

    Raises:
        PruningRefused: the forward pass fails, or autograd cannot be followed through it; names the module.
    """
    import torch_pruning

    from tasks.torch_models.recurrent_units import recurrent_pruners, traced_as_one

    try:
        with traceable(model), traced_as_one(model):
            graph = torch_pruning.DependencyGraph().build_dependency(
                model, example_inputs=inputs, customized_pruners=recurrent_pruners(model), verbose=False
            )
    except Exception as error:
        raise PruningRefused(
            f"torch-pruning cannot trace model {type(model).__name__}: {blame(error, model)}{type(error).__name__}: "
            f"{error}. It follows autograd from the output; see prune_hints() for modules to leave alone"
        ) from error
    return graph


def apply_plan(model: nn.Module, inputs: dict[str, Tensor], plan: Plan) -> None:
    """Remove from a fresh model, in place, the channels that the plan lists; its weights are then loaded over it.

    Raises:
        PruningRefused: the plan does not fit the model.
    """
    graph = dependency_graph(model, inputs)
    try:
        with traceable(model):
            graph.load_pruning_history([[name, bool(out), list(indices)] for name, out, indices in plan])
    except (AttributeError, IndexError, ValueError) as error:
        raise PruningRefused(
            f"the pruning plan does not fit model {type(model).__name__}: {error}; "
            "it was made for another version of the code: prune again"
        ) from error


@contextmanager
def traceable(model: nn.Module) -> Iterator[None]:
    """Evaluation, and autograd on for every parameter: a frozen one would hide its layer from the trace."""
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    training = model.training
    model.requires_grad_(True)
    try:
        with torch.enable_grad():
            model.eval()
            yield
    finally:
        model.train(training)
        for name in frozen:  # by name: pruning makes new parameters
            model.get_parameter(name).requires_grad_(False)
