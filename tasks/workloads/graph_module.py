"""A module as plain JSON and back: its layers and what its forward() does with them, as torch.fx traces it.

For models whose class cannot be built again: a Sequential put together by hand, or a class whose arguments nobody
kept. Nothing in the file is code: layers are classes of torch.nn with their arguments, calls are functions of torch.
Source: Reed et al. 2022, "torch.fx: Practical Program Capture and Transformation for Deep Learning in Python".
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from tasks.running.errors import WorkloadError

_FUNCTIONS = {
    "torch": torch,
    "torch.nn.functional": nn.functional,
    "torch._C._nn": torch._C._nn,
    "operator": operator,
    "math": math,
}
_ALIASES = {"_operator": "operator", "torch._VariableFunctions": "torch", "torch._C._VariableFunctions": "torch"}


def describe_graph(model: nn.Module) -> tuple[dict[str, Any], fx.GraphModule]:
    """The module's structure (not its weights) as JSON, and the traced module, which shares its weights.

    Raises:
        WorkloadError: forward() decides by the values of tensors, or uses what cannot be written down; names it.
    """
    try:
        traced = fx.symbolic_trace(model)
    except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError, KeyError, AttributeError, NameError) as error:
        raise WorkloadError(
            f"{type(model).__name__}.forward() cannot be traced: {error}; it must not decide by the values of tensors"
        ) from error
    layers = {
        str(node.target): _layer(traced.get_submodule(str(node.target)), str(node.target))
        for node in traced.graph.nodes
        if node.op == "call_module"
    }
    tensors = {
        str(node.target): _tensor(traced, str(node.target)) for node in traced.graph.nodes if node.op == "get_attr"
    }
    nodes = [
        {
            "op": node.op,
            "name": node.name,
            "target": _function(node) if node.op == "call_function" else str(node.target),
            "args": _json(node.args, node),
            "kwargs": _json(node.kwargs, node),
        }
        for node in traced.graph.nodes
    ]
    return {"schema": 1, "name": type(model).__name__, "layers": layers, "tensors": tensors, "nodes": nodes}, traced


def graph_module(document: Mapping[str, Any]) -> fx.GraphModule:
    """A module with fresh weights from its traced graph; :func:`winnow.compress` writes the call where it needs one.

    Args:
        document: what was written: the layers, and what forward() does with them.

    Raises:
        WorkloadError: this does not describe a module.
    """
    try:
        return _build(document)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WorkloadError(f"this does not describe a module: {error}; let winnow.compress write it") from error


def _build(document: Mapping[str, Any]) -> fx.GraphModule:
    if document["schema"] != 1:
        raise ValueError(f"schema {document['schema']}, known is 1")
    root: dict[str, Any] = {name: _new_layer(said) for name, said in document["layers"].items()}
    for name, said in document["tensors"].items():
        empty = torch.zeros(said["shape"], dtype=getattr(torch, said["dtype"]))
        root[name] = nn.Parameter(empty) if said["parameter"] else empty
    graph, made = fx.Graph(), dict[str, fx.Node]()
    for node in document["nodes"]:
        target: Any = _called(node["target"]) if node["op"] == "call_function" else node["target"]
        args, kwargs = _value(node["args"], made), _value(node["kwargs"], made)
        made[node["name"]] = graph.create_node(node["op"], target, args, kwargs, name=node["name"])
    graph.lint()
    return fx.GraphModule(root, graph, class_name=document["name"])


def _layer(layer: nn.Module, name: str) -> dict[str, Any]:
    """A layer of torch.nn as its class and the arguments it was made with, which such layers keep as attributes."""
    kind = type(layer)
    if not kind.__module__.startswith("torch.nn.modules.") or getattr(nn, kind.__name__, None) is not kind:
        raise WorkloadError(f"layer {name!r} is a {kind.__module__}.{kind.__name__}, which is no layer of torch.nn")
    arguments: dict[str, Any] = {}
    for parameter in inspect.signature(kind).parameters.values():
        if parameter.name in ("device", "dtype") or parameter.name.startswith("_"):
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):  # Identity takes whatever there is
            continue
        if not hasattr(layer, parameter.name):
            raise WorkloadError(f"layer {name!r}, a {kind.__name__}, does not keep its argument {parameter.name!r}")
        value = getattr(layer, parameter.name)
        if parameter.name == "bias" and not isinstance(value, bool):
            value = value is not None
        arguments[parameter.name] = _json(value, None)
    said = {"class": kind.__name__, "arguments": arguments}
    try:
        again = _new_layer(said).state_dict()
    except (TypeError, ValueError, RuntimeError) as error:
        raise WorkloadError(f"layer {name!r}, a {kind.__name__}, cannot be built again: {error}") from error
    if {n: t.shape for n, t in again.items()} != {n: t.shape for n, t in layer.state_dict().items()}:
        raise WorkloadError(f"layer {name!r}, a {kind.__name__}, cannot be built again with the same weights")
    return said


def _new_layer(said: dict[str, Any]) -> nn.Module:
    kind = getattr(nn, said["class"])
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ValueError(f"torch.nn.{said['class']} is no layer")
    return kind(**_value(said["arguments"], {}))


def _tensor(model: nn.Module, name: str) -> dict[str, Any]:
    """A parameter or buffer that forward() uses itself."""
    found: Any = model
    for part in name.split("."):
        found = getattr(found, part)
    if not isinstance(found, torch.Tensor) or name not in model.state_dict():
        raise WorkloadError(
            f"forward() uses {name!r}, which is not in the state_dict; register it as a parameter or buffer"
        )
    dtype = str(found.dtype).removeprefix("torch.")
    return {"shape": list(found.shape), "dtype": dtype, "parameter": isinstance(found, nn.Parameter)}


def _function(node: fx.Node) -> str:
    target: Any = node.target
    if target is getattr:
        return "builtins.getattr"
    module = getattr(target, "__module__", None) or "torch"
    module = _ALIASES.get(module, module)
    name = getattr(target, "__name__", "")
    for place in (module, *_FUNCTIONS):
        if place in _FUNCTIONS and getattr(_FUNCTIONS[place], name, None) is target:
            return f"{place}.{name}"
    raise WorkloadError(f"forward() calls {module}.{name or target}, which is no function of torch or operator")


def _called(path: str) -> Callable[..., Any]:
    if path == "builtins.getattr":
        return getattr
    place, _, name = path.rpartition(".")
    if place not in _FUNCTIONS or name.startswith("_"):
        raise ValueError(f"{path} is not among the functions that a graph may call")
    function: Callable[..., Any] = getattr(_FUNCTIONS[place], name)
    return function


def _json(value: Any, node: fx.Node | None) -> Any:
    """The value with everything that JSON does not know as a tagged list."""
    if isinstance(value, fx.Node):
        return ["node", value.name]
    if isinstance(value, float) and not math.isfinite(value):  # masks are filled with them
        return ["float", str(value)]
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    if isinstance(value, torch.dtype):
        return ["dtype", str(value).removeprefix("torch.")]
    if isinstance(value, slice):
        return ["slice", [_json(part, node) for part in (value.start, value.stop, value.step)]]
    if value is Ellipsis:
        return ["ellipsis"]
    if isinstance(value, tuple | list):
        return ["tuple" if isinstance(value, tuple) else "list", [_json(item, node) for item in value]]
    if isinstance(value, dict):
        return {str(key): _json(item, node) for key, item in value.items()}
    where = f" in {node.format_node()}" if node is not None else ""
    raise WorkloadError(f"forward() uses a value of type {type(value).__name__}{where}, which cannot be written down")


def _value(said: Any, made: dict[str, fx.Node]) -> Any:
    if isinstance(said, dict):
        return {key: _value(item, made) for key, item in said.items()}
    if not isinstance(said, list):
        return said
    match said:
        case ["node", name]:
            return made[name]
        case ["float", text]:
            return float(text)
        case ["dtype", name]:
            return getattr(torch, name)
        case ["slice", parts]:
            return slice(*(_value(part, made) for part in parts))
        case ["ellipsis"]:
            return Ellipsis
        case ["tuple", items]:
            return tuple(_value(item, made) for item in items)
        case ["list", items]:
            return [_value(item, made) for item in items]
    raise ValueError(f"{said[:1]} is no value of a graph")
