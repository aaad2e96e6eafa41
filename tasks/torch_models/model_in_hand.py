"""A live module as something another process can build again: its class and arguments, or its traced graph.

Whichever way is taken is proved before anything else happens: the module is built again, takes the weights, and must
answer some rows of the user's data with the same bits.
"""

from __future__ import annotations

import copy
import inspect
import pprint
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from tasks.running.errors import WorkloadError
from tasks.running.splits import TARGET, Columns
from tasks.torch_models.fit_rows import call_model
from tasks.torch_models.torch_variant import untied
from tasks.workloads.graph_module import describe_graph, graph_module
from tasks.workloads.live_source import LiveSource
from tasks.workloads.workload import Inputs

WEIGHTS, GRAPH = "weights.safetensors", "network"
"""The file of weights, and the module that holds a traced graph: a module, so that cache keys see its content."""
_ROWS = 16


@dataclass(frozen=True)
class ModelInHand:
    """How a generated workload makes the module again.

    ``expression``: Python that builds it with fresh weights, such as ``nets.Net(hidden=64)``; ``modules``: what it
    imports.
    """

    expression: str
    modules: tuple[str, ...]


def input_names(model: nn.Module) -> tuple[str, ...]:
    """What forward() calls its inputs, those with a default value left out.

    Raises:
        WorkloadError: it is no module, or takes none, or an unknown number of them.
    """
    if not isinstance(model, nn.Module):
        raise WorkloadError(f"the model is a {type(model).__name__}; give a torch.nn.Module")
    parameters = list(inspect.signature(model.forward).parameters.values())
    free = [p.name for p in parameters if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    names = tuple(p.name for p in parameters if p.default is p.empty and p.name not in free)
    if not names:
        found = f"(*{free[0]})" if free else "()"
        raise WorkloadError(
            f"{type(model).__name__}.forward{found} does not name its inputs; write forward(self, x), or wrap the "
            "model in a module that does"
        )
    return names


def write_model(
    model: nn.Module,
    folder: Path,
    *,
    sample: Columns,
    preprocess: Callable[[Inputs], Inputs],
    arguments: Mapping[str, Any] | None,
    source: LiveSource,
) -> ModelInHand:
    """Write the weights, and the graph where the class cannot be built again, into the folder.

    Args:
        model: left as it is.
        sample: some rows to prove it on; raw inputs [N, ...] by name, and the target.
        preprocess: raw inputs to what the model takes.
        arguments: of the class; None = those of its attributes that have the names of its parameters.
        source: takes the class.

    Raises:
        WorkloadError: the model does not take the inputs, or can be built again in no way; says why for each.
    """
    original = copy.deepcopy(model).cpu().eval()
    inputs = _rows(sample)
    answers = _answers(original, preprocess(inputs))
    if not torch.equal(answers, _answers(original, preprocess(inputs))):
        raise WorkloadError(
            f"{type(model).__name__} answers the same rows differently each time, in eval mode; nothing can be proved "
            "of such a model"
        )

    def proves(candidate: nn.Module, weights: Mapping[str, Tensor]) -> str:
        """Why the candidate is not the model; empty if it is."""
        try:
            candidate.load_state_dict(dict(weights))
        except RuntimeError as error:
            return f"takes other weights ({str(error).splitlines()[-1].strip()[:200]})"
        again = _answers(candidate.eval(), preprocess(inputs))
        return "" if torch.equal(answers, again) else "answers otherwise with the same weights"

    why, expression = _by_class(original, arguments, source, proves)
    if expression:
        _save(original, folder)
        return ModelInHand(expression, modules=(expression.split("(")[0].rpartition(".")[0],))
    if arguments is not None:
        raise WorkloadError(f"arguments {dict(arguments)}: {why}; give those that the model was made with")
    try:
        document, traced = describe_graph(original)
        wrong = proves(graph_module(document), traced.state_dict())
    except WorkloadError as error:
        wrong = error.message
    if wrong:
        raise WorkloadError(
            f"{type(model).__name__} cannot be built again in another process. By its class: {why}. By its graph: "
            f"{wrong}. Give the arguments of its class as arguments={{...}} and define it in a file, or export it to "
            "ONNX and bring the file (teacher: {weights: model.onnx})"
        )
    text = '"""The network as it was traced: its layers, and what forward() does with them."""\n\nGRAPH = '
    (folder / f"{GRAPH}.py").write_text(text + pprint.pformat(document, width=118) + "\n", encoding="utf-8")
    _save(traced, folder)
    return ModelInHand(f"winnow.graph_module({GRAPH}.GRAPH)", modules=(GRAPH,))


def _by_class(
    model: nn.Module,
    arguments: Mapping[str, Any] | None,
    source: LiveSource,
    proves: Callable[[nn.Module, Mapping[str, Tensor]], str],
) -> tuple[str, str]:
    """Why the class will not do, or the expression that makes the model."""
    kind = type(model)
    if kind.__module__.startswith("torch."):
        return f"{kind.__name__} is put together of parts that were made elsewhere", ""
    given = dict(arguments) if arguments is not None else _attributes(model)
    if given is None:
        return f"it does not keep what {kind.__name__}{inspect.signature(kind)} was made with", ""
    try:
        again = kind(**given)
    except (TypeError, ValueError, RuntimeError, LookupError, AttributeError, AssertionError) as error:
        return f"{kind.__name__}({_call(given)}) raises {type(error).__name__}: {error}", ""
    wrong = proves(again, model.state_dict())
    if wrong:
        return f"{kind.__name__}({_call(given)}) {wrong}", ""
    try:
        path = source.add(kind, "the model's class")
    except WorkloadError as error:
        return error.message, ""
    return "", f"{path}({_call(given)})"


def _attributes(model: nn.Module) -> dict[str, Any] | None:
    """Arguments of the class from attributes of the same name; None where one is missing."""
    found = {}
    for parameter in inspect.signature(type(model)).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        value = getattr(model, parameter.name, parameter.empty)
        if value is not parameter.empty and _literal(value):
            found[parameter.name] = value
        elif parameter.default is parameter.empty:
            return None
    return found


def _literal(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_literal, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _literal(item) for key, item in value.items())
    return value is None or isinstance(value, bool | int | float | str)


def _call(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


def _rows(sample: Columns) -> Inputs:
    return {name: torch.from_numpy(values[:_ROWS].copy()) for name, values in sample.items() if name != TARGET}


def _answers(model: nn.Module, inputs: Inputs) -> Tensor:
    with torch.no_grad():
        return call_model(model, inputs)


def _save(model: nn.Module, folder: Path) -> None:
    tensors, _ = untied(model)
    safetensors.torch.save_file(tensors, folder / WEIGHTS)
