"""What a workload's model() offers a search: networks by name, and their widths, read off its signature."""

from __future__ import annotations

import inspect
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from tasks.workloads.workload import Workload

_WIDTHS = (1.0, 0.5)
"""Of each network by another name: a fresh one has no layers that a ladder could narrow with sense."""
_MOST = 6


def offered_scales(workload: Workload) -> list[dict[str, Any]]:
    """Arguments of ``model()`` that make other networks, at most six: a search may try them as students.

    A parameter annotated with ``Literal`` of texts, alone or among other types, offers each of them but its default, at
    full and, where there is a parameter ``width``, at half width. Anything else is left to whoever writes
    ``search.students``.
    """
    method = workload.user.model
    parameters = inspect.signature(method).parameters
    try:
        hints = get_type_hints(method)
    except (NameError, TypeError):  # names that only a type checker sees
        return []
    widths = _WIDTHS if "width" in parameters else (1.0,)
    found = []
    for name, parameter in parameters.items():
        if name == "role":
            continue
        values = [v for v in _literals(hints.get(name)) if isinstance(v, str) and v != parameter.default]
        found += [{name: value} | ({"width": width} if width != 1.0 else {}) for value in values for width in widths]
    return found[:_MOST]


def _literals(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) is Literal:
        return get_args(hint)
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else ()
    return tuple(value for part in parts for value in _literals(part))
