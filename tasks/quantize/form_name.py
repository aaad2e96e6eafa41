"""What the forms of a model are called."""

from __future__ import annotations


def form_name(label: str, method: str) -> str:
    """``student.int8-static``, ``student.weights4``."""
    return f"{label}.int8-{method}" if method in ("static", "dynamic") else f"{label}.{method}"
