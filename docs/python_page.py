"""Write docs/python.md from the docstrings of all that ``import winnow`` offers.

    python docs/python_page.py > docs/python.md

A test keeps it current.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

from torch import nn

import winnow

INTRODUCTION = """\
# Python

All that `import winnow` offers. Shapes are in brackets; N is the number of rows.

This page is made from the docstrings by `python docs/python_page.py > docs/python.md`.
"""
CALLS = ("up", "compress", "run", "variants", "compare", "load", "promote", "rollback", "down")
RESULTS = ("RunResult", "LoadedModel")
SERVED = ("Client", "AsyncClient")
WRITTEN = ("Workload", "Metric", "ArrayWorkload")
NETWORK_MAKERS = ("graph_module",)
HIDDEN = {"LoadedModel.from_store", "LoadedModel.from_file"}
"""What `winnow.load` calls for you."""
HEADINGS = ("Args", "Returns", "Raises", "Attributes")


def page() -> str:
    """The whole page as Markdown."""
    parts = [INTRODUCTION]
    for title, names in chapters():
        parts.append(f"## {title}\n")
        if title in ("Errors", "Metrics"):
            things = [getattr(winnow, name) for name in names]
            said = [text(thing.per_sample if isinstance(thing, winnow.Metric) else thing) for thing in things]
            parts += [f"- `{n}`: {' '.join(markdown(t).split())}" for n, t in zip(names, said, strict=True)] + [""]
            continue
        for name in names:
            parts += [f"### winnow.{name}\n", *entry(name, getattr(winnow, name))]
    return "\n".join(parts)


def chapters() -> Iterator[tuple[str, list[str]]]:
    """Title and names of each chapter; every name is in one."""
    left = [name for name in dir(winnow) if name not in {*CALLS, *RESULTS, *SERVED, *WRITTEN}]
    found = {name: getattr(winnow, name) for name in left}
    yield "Calls", list(CALLS)
    yield "What they return", list(RESULTS)
    yield "Models in service", list(SERVED)
    yield "What you write", list(WRITTEN)
    classes = {n: thing for n, thing in found.items() if isinstance(thing, type)}
    networks = [n for n, c in classes.items() if issubclass(c, nn.Module)] + list(NETWORK_MAKERS)
    workloads = [n for n, c in classes.items() if hasattr(c, "splits")]
    errors = [n for n, c in classes.items() if issubclass(c, BaseException)]
    metrics = [n for n, thing in found.items() if isinstance(thing, winnow.Metric)]
    yield "Metrics", metrics
    yield "Readers", [n for n in left if n not in {*classes, *NETWORK_MAKERS, *metrics}]
    yield "Worked workloads", workloads
    yield "Networks", networks
    yield "Errors", errors
    homeless = set(classes) - {*networks, *workloads, *errors}
    if homeless:
        raise SystemExit(f"{sorted(homeless)} are in no chapter of docs/python.md: name one in docs/python_page.py")


def entry(name: str, thing: Any) -> Iterator[str]:
    """Signature and docstring; of a class its public methods and properties too."""
    yield f"```text\n{signature(name, thing)}\n```\n"
    yield markdown(text(thing))
    if name in (*RESULTS, *SERVED, *WRITTEN):
        for member, value in vars(thing).items():
            found = value.fget if isinstance(value, property) else value
            if inspect.isfunction(found) and not member.startswith("_") and f"{name}.{member}" not in HIDDEN:
                call = signature(member, found) if not isinstance(value, property) else member
                yield f"**`.{call}`**\n"
                yield markdown(text(found))


def signature(name: str, thing: Any) -> str:
    """The call as one writes it, without annotations that only a type checker reads."""
    found = inspect.signature(thing)
    shown = [p for p in found.parameters.values() if p.name != "self"]
    if [p.name for p in shown] == ["args", "kwargs"]:  # a protocol
        return f"class {name}"
    parts, star = [], False
    for p in shown:
        if p.kind is p.KEYWORD_ONLY and not star:
            parts.append("*")
        star = star or p.kind in (p.KEYWORD_ONLY, p.VAR_POSITIONAL)
        mark = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        parts.append(mark + p.name + ("" if p.default is p.empty else f"={p.default!r}"))
    line = f"{name}({', '.join(parts)})"
    return line if len(line) <= 100 else f"{name}(\n    " + ",\n    ".join(parts) + ",\n)"


def text(thing: Any) -> str:
    """The docstring; the page cannot be made where one is missing."""
    found = inspect.getdoc(thing)
    if not found:
        raise SystemExit(f"{thing} has no docstring: say what it is")
    return found


def markdown(docstring: str) -> str:
    """A docstring as Markdown: code spans, and a list for Args, Returns, Raises and Attributes."""
    plain = re.sub(r":(?:func|class|meth|attr):`([^`]+)`", r"`\1`", docstring).replace("``", "`")
    parts: list[str] = []
    for block in re.split(r"\n(?=(?:Args|Returns|Raises|Attributes):\n)", plain):
        heading, _, body = block.partition(":\n")
        if heading not in HEADINGS:
            parts.append(block.strip())
        elif heading == "Returns":
            parts.append(f"Returns: {' '.join(body.split())}")
        else:
            parts.append("\n".join([f"{heading}:\n", *items(inspect.cleandoc("\n" + body))]))
    return "\n\n".join(parts) + "\n"


def items(body: str) -> Iterator[str]:
    """``name: meaning``, and what follows indented, as list items."""
    for item in re.split(r"\n(?=\S)", body):
        name, colon, meaning = " ".join(item.split()).partition(": ")
        names = ", ".join(f"`{part}`" for part in name.split(", "))
        yield f"- {names}: {meaning}" if colon else f"- {name}"


if __name__ == "__main__":
    print(page(), end="")
