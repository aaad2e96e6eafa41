"""Write docs/spec.md from the spec's classes: ``python docs/spec_page.py > docs/spec.md``. A test keeps it current."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from flows.spec import PipelineSpec
from flows.spec_budget import is_older_name

INTRODUCTION = """\
# The spec

One YAML file describes a whole run. Unknown keys are refused, and all errors are reported at once. Any value can be
changed for one run with `--set`, for example `--set prune.ratio=0.2`. `winnow schema` prints the same as JSON Schema,
for editors.

This page is made from the field descriptions by `python docs/spec_page.py > docs/spec.md`.
"""
# WorkloadRef is a value that travels between processes, and says these in its docstrings.
DESCRIPTIONS = {
    ("WorkloadRef", "path"): "the class, as `module:Class`; `workload: module:Class` is short for it",
    ("WorkloadRef", "arguments"): "keyword arguments of the class",
    ("WorkloadRef", "folder"): "where to look for the module, after the installed ones; set to the spec's own folder",
}
RULES = {"gt": "above {}", "ge": "at least {}", "lt": "below {}", "le": "at most {}", "pattern": "matches `{}`"}


def page() -> str:
    """The whole page as Markdown."""
    lines = [INTRODUCTION]
    for title, model in sections(PipelineSpec, ""):
        lines += [f"## {title or 'Top level'}", "", first_sentences(model), ""]
        lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
        for name, field in model.model_fields.items():
            if is_older_name(field):
                continue
            cells = (f"`{field.alias or name}`", kind(field.annotation), default(field), meaning(model, name, field))
            lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def sections(model: type[BaseModel], path: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """Every spec class with the key it stands under, depth first."""
    yield path, model
    for name, field in model.model_fields.items():
        for inner in models_in(field.annotation):
            below = f"{path}.{field.alias or name}" if path else field.alias or name
            in_mapping = get_origin(field.annotation) is dict
            yield from sections(inner, f"{below}.<stage>" if in_mapping else below)


def models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in models_in(argument)]


def kind(annotation: Any) -> str:
    """The type as people say it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return "null"
    if annotation is Any:
        return "anything"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    if hasattr(annotation, "__metadata__"):
        return kind(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{json.dumps(a)}`" if not isinstance(a, str) else f"`{a}`" for a in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(kind(a) for a in arguments)
    if origin is dict:
        return f"mapping of {kind(arguments[0])} to {kind(arguments[1])}"
    if origin is tuple and len(arguments) == 2 and arguments[1] is not Ellipsis:
        return f"[{kind(arguments[0])}, {kind(arguments[1])}]"
    if origin in (list, tuple, set, frozenset):
        return f"list of {kind(arguments[0])}"
    return {"str": "text", "int": "integer", "float": "number", "bool": "true or false"}.get(
        getattr(annotation, "__name__", ""), str(annotation)
    )


def default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None or field.default is PydanticUndefined:
        made = field.get_default(call_default_factory=True)
        if isinstance(made, BaseModel):
            return "its defaults"
        return f"`{json.dumps(made)}`" if made else "empty"
    if field.default is None:
        return "absent"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return f"`{json.dumps(value)}`"


def meaning(model: type[BaseModel], name: str, field: FieldInfo) -> str:
    text = field.description or DESCRIPTIONS.get((model.__name__, name))
    if not text:
        raise SystemExit(f"{model.__name__}.{name} has no description: say in a sentence what it means")
    rules = [
        text.format(limit)
        for constraint in field.metadata
        for attribute, text in RULES.items()
        if (limit := getattr(constraint, attribute, None)) is not None
    ]
    return f"{text} ({', '.join(rules)})" if rules else text


def first_sentences(model: type[BaseModel]) -> str:
    """The first paragraph of the class's docstring."""
    return " ".join((model.__doc__ or "").strip().partition("\n\n")[0].replace("``", "`").split())


if __name__ == "__main__":
    print(page(), end="")
