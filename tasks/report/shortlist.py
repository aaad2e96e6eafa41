"""Of the many variants of a search, those that a person wants to compare first."""

from __future__ import annotations

from tasks.evidence.pareto import front
from tasks.report.run_report import RunReport, VariantRow

_FEW = 12


def shortlist(report: RunReport) -> tuple[VariantRow, ...]:
    """All variants of an ordinary run; of a large search the baseline, the chosen or best one, and the Pareto front.

    The front is that of the variants that no gate would refuse, if there are any besides the baseline.
    """
    if report.search is None or len(report.variants) <= _FEW:
        return report.variants
    marked = {report.baseline, report.chosen, report.search.best}
    refused = {f.digest for c in report.search.candidates for f in c.forms if f.fails}
    rivals = [v for v in report.variants if v.digest != report.baseline and not v.control]
    rivals = [v for v in rivals if v.digest not in refused] or rivals
    sign = -1.0 if report.metric and report.metric.better == "higher" else 1.0
    flags = front([(sign * v.metric.value, v.p50_ms, float(v.bytes)) for v in rivals])
    wanted = marked | {v.digest for v, on_front in zip(rivals, flags, strict=True) if on_front}
    return tuple(v for v in report.variants if v.digest in wanted)
