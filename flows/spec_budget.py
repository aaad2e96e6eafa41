"""A budget in terms of gates: each part of it is a gate or a condition of measuring under another name."""

from __future__ import annotations

from typing import Any

SAME = {
    "budget.max_accuracy_drop": "gates.margin",
    "budget.p95_ms": "gates.max_p95_ms",
    "budget.max_bytes": "gates.max_bytes",
    "budget.batch": "measure.batch",
    "budget.threads": "export.threads",
    "objective": "gates.objective",
}
"""Two keys for the same thing: the budget's is what a person asks for, the gate's is what looks at it."""


def budgeted(document: dict[str, Any]) -> dict[str, Any]:
    """The document with the gates that follow from its budget and objective.

    Values that are no numbers are left for the types to refuse.

    Raises:
        ValueError: budget and gates say two different things; names both.
    """
    made = {key: dict(value) if isinstance(value, dict) else value for key, value in document.items()}
    wrong = []
    for wish, gate in SAME.items():
        section, _, key = gate.partition(".")
        value = _get(made, wish)
        if value is None:
            if wish == "objective" and _get(made, gate) is not None:  # a spec may say it there
                made[wish] = _get(made, gate)
            continue
        there = made.setdefault(section, {})
        if not isinstance(there, dict):
            continue
        if there.get(key) is not None and there[key] != value:
            wrong.append(f"{wish} {value!r} and {gate} {there[key]!r} are the same limit and differ; remove one")
        there[key] = value
    if wrong:
        raise ValueError("; ".join(wrong))
    return made


def _get(document: dict[str, Any], path: str) -> Any:
    section, _, key = path.rpartition(".")
    here = document.get(section) if section else document
    return here.get(key) if isinstance(here, dict) else None
