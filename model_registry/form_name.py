"""What variants are called: the model and the form of its file, as in ``student.int8-static``.

Names are labels, made for people: nothing is looked up by them, and nothing is decided by them. What a variant is to
its stage stands in the outcome's ``roles``.
"""

from __future__ import annotations

_SUFFIX = {"static": "int8-static", "symmetric": "int8-symmetric", "dynamic": "int8-dynamic", "qat": "int8-qat"}
_OTHERS = ("fp32", "weights8", "weights4", "weights4-qat", "mixed", "mixed-qat", "fp16", "bf16")


def form_name(label: str, form: str) -> str:
    """``student.int8-static``, ``student.weights4``: a model's label and how its file was made."""
    return f"{label}.{_SUFFIX.get(form, form)}"


def name_parts(name: str) -> tuple[str, str]:
    """``("student", "int8-static")``: the label and the form in a variant's name; no form where it has none."""
    label, _, form = name.rpartition(".")
    return (label, form) if label and form in (*_SUFFIX.values(), *_OTHERS) else (name, "")
