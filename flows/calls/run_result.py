"""What a run came to, for people who look at it in Python."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from model_registry.sizes import size_text
from tasks.evidence.number_text import bits_text, metric_range, metric_text
from tasks.report.headline import headline
from tasks.report.ratio_text import faster_text, smaller_text
from tasks.report.run_report import RunReport, VariantRow
from tasks.report.shortlist import shortlist

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, repr=False)
class RunResult:
    """A finished run. A notebook shows it as a sentence and the table of its variants.

    Attributes:
        report: everything that is known of the run, as ``winnow show RUN --json`` prints it.
        page: its report as one HTML file; None where it was not written on this machine.
    """

    report: RunReport
    page: Path | None = None

    @property
    def run_id(self) -> str:
        """The run's name in the store, MLflow and the logs, such as ``20261122-031500-digits-3f9a``."""
        return self.report.run_id

    @property
    def status(self) -> str:
        """``released``, ``registered`` (nothing was deployed), or ``refused``: no variant passed the gates."""
        return self.report.state

    @property
    def chosen(self) -> VariantRow | None:
        """The variant that was chosen, with its numbers; None where there was none to choose."""
        return self.report.row(self.report.chosen)

    @property
    def variants(self) -> DataFrame:
        """Every measured variant, a row each; the columns are those of :func:`winnow.variants`."""
        from flows.calls.run_frames import variant_frame

        return variant_frame(self.report)

    def __repr__(self) -> str:
        head = headline(self.report)
        return f"{self.report.model}, run {self.run_id}: {head.word}. {head.sentence}"

    def _repr_html_(self) -> str:
        head = headline(self.report)
        version = f" version {self.report.version}" if self.report.version else ""
        shown = [
            f"<p><b>{html.escape(self.report.model)}{version}: {html.escape(head.word)}.</b> "
            f"{html.escape(head.sentence)}</p>"
        ]
        if self.report.variants:
            shown.append(_table(self.report))
        links = {**self.report.links, **({"endpoint": self.report.endpoint} if self.report.endpoint else {})}
        shown.append(" · ".join(f'<a href="{html.escape(url)}">{html.escape(name)}</a>' for name, url in links.items()))
        return "\n".join(shown)


def _table(report: RunReport) -> str:
    """The variants that count, as HTML: ratios to the baseline, for latencies of different minutes mislead."""
    name = report.metric.name if report.metric else "metric"
    baseline = report.row(report.baseline)
    lines = [f"<tr><th>variant</th><th>{html.escape(name)}</th><th>size</th><th>smaller</th><th>faster</th></tr>"]
    for row in shortlist(report):
        cells = [
            row.name + (" (baseline)" if row is baseline else ""),
            f"{metric_text(row.metric.value, name)} ({metric_range(row.metric.interval, name)})"
            + (f", {bits_text(row.bits_per_byte)}" if row.bits_per_byte is not None else ""),
            size_text(row.bytes),
            smaller_text(row, baseline),
            faster_text(row),
        ]
        tag = "b" if row.digest == report.chosen else "span"
        lines.append("<tr>" + "".join(f"<td><{tag}>{html.escape(cell)}</{tag}></td>" for cell in cells) + "</tr>")
    return "<table>" + "\n".join(lines) + "</table>"
