"""Classes as files name them: a text, or a whole number."""

from __future__ import annotations

from tasks.running.errors import DataReadError


def label_text(value: object, where: str) -> str | None:
    """What a class is called; None where there is nothing.

    Raises:
        DataReadError: it is neither a text nor a whole number; ``where`` says whose it is.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise DataReadError(f"{where} has the label {str(value)[:60]!r}; a class is a text or a whole number")
    return str(value).strip() or None


def label_order(label: str) -> tuple[int, str]:
    """Sorts whole numbers by their value, before texts."""
    return (int(label), "") if label.lstrip("-").isdecimal() else (1 << 62, label)
