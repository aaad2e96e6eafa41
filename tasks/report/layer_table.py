"""Layer by layer: what removing channels would damage, what was removed, and what stayed in fp32."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tasks.evidence.search_summary import CandidateRow
from tasks.report.run_report import RunReport

_COLUMNS = 10
_FLOOR = 1e-4
"""Damages (mean KL divergence, or share of the variance) below this look alike."""


@dataclass(frozen=True)
class Heat:
    """``share`` of the full colour, 0 to 1."""

    text: str
    share: float


@dataclass(frozen=True)
class LayerRow:
    """One layer. ``removed`` share of its channels, None where it was not touched or nobody says."""

    name: str
    damages: tuple[Heat | None, ...]
    removed: float | None
    channels: tuple[int, int] | None


@dataclass(frozen=True)
class LayerTable:
    """``shares``: headings of the damages."""

    shares: tuple[str, ...]
    rows: tuple[LayerRow, ...]
    pruned: bool


def layer_table(report: RunReport) -> LayerTable | None:
    """The table; None where nothing is known by layer."""
    sensitivity = report.search.sensitivity if report.search else {}
    ratios = _ratios(chosen_candidate(report))
    channels = report.layers.channels if report.layers else {}
    names = list(dict.fromkeys([*sensitivity, *ratios, *channels]))
    if not names:
        return None
    shares = _shares(sensitivity)
    largest = max((d for found in sensitivity.values() for d in found.values()), default=0.0)
    rows = []
    for name in names:
        before, after = channels.get(name, (0, 0))
        removed = ratios.get(name, 1 - after / before if before else None)
        found = {_bin(float(share), shares): damage for share, damage in sorted(sensitivity.get(name, {}).items())}
        heats = tuple(Heat(_text(found[s]), _heat(found[s], largest)) if s in found else None for s in shares)
        rows.append(LayerRow(name, heats, removed, (before, after) if before else None))
    headings = tuple(f"{100 * share:.3g} %" for share in shares)
    return LayerTable(headings, tuple(rows), any(row.removed is not None for row in rows))


def chosen_candidate(report: RunReport) -> CandidateRow | None:
    """The candidate of the chosen variant, else of the best one on validation."""
    candidates = report.search.candidates if report.search else ()
    digests = [report.chosen, report.search.best if report.search else None]
    return next((c for d in digests for c in candidates if d and d in {f.digest for f in c.forms}), None)


def _ratios(candidate: CandidateRow | None) -> dict[str, float]:
    ratios = candidate.settings.get("ratios") if candidate else None
    return {str(k): float(v) for k, v in ratios.items()} if isinstance(ratios, dict) else {}


def _shares(sensitivity: dict[str, dict[str, float]]) -> list[float]:
    """The shares removed that occur; of very many, tenths."""
    found = sorted({float(share) for damages in sensitivity.values() for share in damages})
    return found if len(found) <= _COLUMNS else [tenth / 10 for tenth in range(1, 11)]


def _bin(share: float, shares: list[float]) -> float:
    return min(shares, key=lambda s: abs(s - share))


def _heat(damage: float, largest: float) -> float:
    """Logarithmic: damages span orders of magnitude."""
    if damage <= _FLOOR or largest <= _FLOOR:
        return 0.0
    return round(0.08 + 0.72 * math.log(damage / _FLOOR) / math.log(largest / _FLOOR), 3)


def _text(damage: float) -> str:
    return f"{damage:.2g}" if damage >= _FLOOR else "< 0.0001" if damage > 0 else "0"
