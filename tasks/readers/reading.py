"""What a reader understood, in sentences for the plan, the page of the data and the report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

_SHOWN = 12
"""Names in a sentence, and the letters of each that are shown."""
_LETTERS = 60


@dataclass(frozen=True)
class Reading:
    """``facts`` say what was read and how; ``findings`` what a person should look at, such as what was left out."""

    facts: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()

    def __add__(self, other: Reading) -> Reading:
        facts = dict.fromkeys((*self.facts, *other.facts))  # of a file per split, the same is said once
        return Reading(tuple(facts), tuple(dict.fromkeys((*self.findings, *other.findings))))


class ReadColumns(dict[str, NDArray[Any]]):
    """Columns that know how they were read.

    Attributes:
        reading: what was understood.
        types: numpy's name of the type that a column's values have, where a missing one made all of them float64.
    """

    def __init__(
        self, columns: Mapping[str, NDArray[Any]], reading: Reading, types: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(columns)
        self.reading = reading
        self.types = dict(types or {})


def listed(names: Iterable[str]) -> str:
    """``'a', 'b' and 3 more``."""
    quoted = [repr(name if len(name) <= _LETTERS else name[: _LETTERS - 3] + "...") for name in names]
    more = len(quoted) - _SHOWN
    return ", ".join(quoted[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def counts_text(counts: Mapping[str, int]) -> str:
    """``'a' 3, 'b' 5 and 2 more``."""
    shown = ", ".join(f"{name!r} {count}" for name, count in list(counts.items())[:_SHOWN])
    more = len(counts) - _SHOWN
    return shown + (f" and {more} more" if more > 0 else "")


def kinds_sentence(kinds: Mapping[str, str]) -> str:
    """``Numbers: 'a', 'b'. Text: 'c'.``, from the kind of every column."""
    by_kind: dict[str, list[str]] = {}
    for name, kind in kinds.items():
        by_kind.setdefault(kind, []).append(name)
    return " ".join(f"{kind.capitalize()}: {listed(names)}." for kind, names in by_kind.items())


def rows_text(rows: Sequence[int]) -> str:
    """``72 rows (3, 17, 25, ...)``: how many, and the first of their numbers."""
    first = ", ".join(map(str, rows[:5]))
    return f"{len(rows)} row{'s' * (len(rows) != 1)} ({first}{', ...' if len(rows) > 5 else ''})"
