"""Values that a JSON schema allows, and values that are nearly so, for tests that send them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

Schema = Mapping[str, Any]
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
ANYTHING: SearchStrategy[Any] = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
"""Of JSON, and what Python adds to it: NaN and infinity."""
_MOST = 4
"""Elements of a list."""


def values_of(schema: Schema, document: Schema) -> SearchStrategy[Any]:
    """Values that the schema allows; ``document``: what its references lead into.

    Raises:
        KeyError: its type is one that nobody here uses.
    """
    if "$ref" in schema:
        found: Any = document
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        return values_of(found, document)
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "type" not in schema:
        return ANYTHING
    made: SearchStrategy[Any] = _BY_TYPE[schema["type"]](schema, document)
    return made


def _object(schema: Schema, document: Schema) -> SearchStrategy[Any]:
    required = schema.get("required", [])
    parts = {name: values_of(part, document) for name, part in schema.get("properties", {}).items()}
    return st.fixed_dictionaries(
        {name: part for name, part in parts.items() if name in required},
        optional={name: part for name, part in parts.items() if name not in required},
    )


def _array(schema: Schema, document: Schema) -> SearchStrategy[Any]:
    return st.lists(values_of(schema.get("items", {}), document), max_size=min(schema.get("maxItems", _MOST), _MOST))


def _string(schema: Schema, document: Schema) -> SearchStrategy[Any]:
    if "pattern" in schema:
        return st.from_regex(schema["pattern"], fullmatch=True)
    return st.text(max_size=min(schema.get("maxLength", 20), 20))


def _number(schema: Schema, document: Schema) -> SearchStrategy[Any]:
    least = schema.get("exclusiveMinimum")
    return st.floats(least, allow_nan=False, allow_infinity=False, exclude_min=least is not None)


_BY_TYPE: Any = {
    "object": _object,
    "array": _array,
    "string": _string,
    "number": _number,
    "integer": lambda schema, _: st.integers(schema.get("minimum"), schema.get("maximum")),
    "boolean": lambda schema, _: st.booleans(),
}


@st.composite
def nearly(draw: st.DrawFn, values: SearchStrategy[Any]) -> Any:
    """One of the values with one part of it replaced, left out, or doubled."""
    whole = [copy.deepcopy(draw(values))]
    places: list[tuple[Any, Any]] = [(whole, 0)]
    for holder, key in places:  # which grows
        inner = holder[key]
        keys = list(inner) if isinstance(inner, dict) else range(len(inner)) if isinstance(inner, list) else ()
        places += [(inner, each) for each in keys]
    holder, key = draw(st.sampled_from(places))
    match draw(st.sampled_from(["replace", "leave out", "double"])):
        case "leave out" if holder is not whole:
            del holder[key]
        case "double" if isinstance(holder[key], list):
            holder[key] = holder[key] * 2
        case _:
            holder[key] = draw(ANYTHING)
    return whole[0]
