"""All variants as plain aligned text, for error messages and logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from model_registry.measurement import Measurement

_HEADER = ("variant", "stage", "metric", "95 % interval", "p50 ms", "p95 ms", "bytes", "fails on validation")


def variant_table(measurements: Sequence[Measurement], *, failing: Mapping[str, tuple[str, ...]] | None = None) -> str:
    """A line per variant; ``failing`` names the gates each would fail, by digest."""
    rows = [_HEADER]
    for m in measurements:
        low, high = m.metric.interval
        rows.append(
            (
                m.name,
                m.stage,
                f"{m.metric.value:.4f}",
                f"{low:.4f} - {high:.4f}",
                f"{m.p50_ms:.4g}",
                f"{m.p95_ms:.4g}",
                str(m.bytes),
                ", ".join((failing or {}).get(m.digest, ())) or ("baseline" if m.digest == m.baseline else "-"),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADER))]
    return "\n".join(
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
