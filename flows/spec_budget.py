"""A budget in terms of what looks at it: each part of it is a gate, or a condition of measuring."""

from __future__ import annotations

from typing import Any

from pydantic.fields import FieldInfo

SAME = {
    "budget.max_accuracy_drop": "gates.margin",
    "budget.max_relative_drop": "gates.relative_margin",
    "budget.max_nats_increase": "gates.margin",
    "budget.max_choice_drop": "gates.max_choice_drop",
    "budget.min_tokens_per_second": "gates.min_tokens_per_second",
    "budget.max_ttft_ms": "gates.max_ttft_ms",
    "budget.p95_ms": "gates.max_p95_ms",
    "budget.max_bytes": "gates.max_bytes",
    "budget.min_speedup": "gates.min_speedup",
    "budget.min_shrink": "gates.min_shrink",
    "budget.max_luts": "gates.max_luts",
    "budget.batch": "measure.batch",
    "budget.threads": "export.threads",
    "objective": "gates.objective",
}
"""What a person asks for, and the stage's key that looks at it. Specs of before the budget may say the latter; the
documents do not."""

_MOST_COUNTED = 65_536
"""Multiplications beyond which no circuit is made in any case."""
_CIRCUITS: dict[str, Any] = {"methods": ["static"], "scales": "power_of_two"}
"""Of quantization: what can become a circuit."""
TAIL_REQUESTS = 200
"""Of each variant, where a limit rests on the slowest twentieth of them."""


def budgeted(document: dict[str, Any]) -> dict[str, Any]:
    """The document with the stages' keys that follow from its budget and objective.

    Values that are no numbers are left for the types to refuse.

    Raises:
        ValueError: budget and gates say two different things; names both.
    """
    made = {key: dict(value) if isinstance(value, dict) else value for key, value in document.items()}
    wrong = _two_margins(document)
    for wish, gate in SAME.items():
        section, _, key = gate.partition(".")
        value = said(made, wish)
        if value is None:
            if wish == "objective" and said(made, gate) is not None:  # a spec may say it there
                made[wish] = said(made, gate)
            continue
        there = made.setdefault(section, {})
        if not isinstance(there, dict):
            continue
        if there.get(key) is not None and there[key] != value:
            wrong.append(f"{wish} {value!r} and {gate} {there[key]!r} are the same limit and differ; remove one")
        there[key] = value
    if wrong:
        raise ValueError("; ".join(wrong))
    methods, size = said(made, "quantize.methods"), said(made, "budget.max_bytes")
    if isinstance(methods, list | tuple) and "mixed" in methods and size is not None:
        made["quantize"].setdefault("max_bytes", size)
    tables = said(made, "gates.max_luts")
    if tables is not None and (misfit := _for_circuits(made, tables)):
        raise ValueError(misfit)
    if said(made, "budget.p95_ms") is not None or said(made, "gates.max_p95_ms") is not None:
        measure = made.setdefault("measure", {})
        if isinstance(measure, dict):
            measure.setdefault("requests", TAIL_REQUESTS)
    return made


def _for_circuits(made: dict[str, Any], tables: Any) -> str:
    """Have files made that an FPGA can take, and their tables counted; what is wrong where the spec asks otherwise."""
    if not isinstance(tables, int) or tables < 1:
        return ""  # for the types to refuse
    if made.get("qat") is not None:
        return f"budget.max_luts {tables!r} and qat contradict each other: it learns scales that are no powers of two"
    # Rounded up, so that most other limits find what was counted for this one.
    counted = min(_MOST_COUNTED, 1 << (tables - 1).bit_length())
    measure, quantize = made.setdefault("measure", {}), made.setdefault("quantize", {})
    if quantize is None:
        quantize = made["quantize"] = {}
    if not (isinstance(measure, dict) and isinstance(quantize, dict)):
        return ""
    measure["luts_below"] = counted
    for key, value in _CIRCUITS.items():
        found = quantize.setdefault(key, value)
        if (list(found) if isinstance(found, tuple) else found) != value:
            return f"budget.max_luts {tables!r} needs quantize.{key} {value!r}, and it is {found!r}; remove one"
    return ""


def _two_margins(document: dict[str, Any]) -> list[str]:
    """What is wrong where the loss is limited twice: in nats and as a drop, or in the metric's unit and as a share."""
    relative = [key for key in ("budget.max_relative_drop", "gates.relative_margin") if said(document, key) is not None]
    own = ("budget.max_accuracy_drop", "budget.max_nats_increase")
    absolute = [key for key in (*own, "gates.margin") if said(document, key) is not None]
    if set(own) <= set(absolute):
        values = " and ".join(f"{key} {said(document, key)!r}" for key in own)
        return [f"{values} are the same limit; remove one"]
    if not relative or not absolute:
        return []
    values = " and ".join(f"{key} {said(document, key)!r}" for key in (absolute[0], relative[0]))
    return [f"{values} both limit the loss, one in the metric's unit and one as a share of it; remove one"]


def said(document: dict[str, Any], path: str) -> Any:
    """The document's value for ``section.key``; None where it says nothing."""
    section, _, key = path.rpartition(".")
    here = document.get(section) if section else document
    return here.get(key) if isinstance(here, dict) else None


def is_older_name(field: FieldInfo) -> bool:
    """Whether a spec of today says it by the budget."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("deprecated"))
