"""Write the report's files: report.html, model_card.md, pareto.png and report.json."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_registry.sizes import KB, size_text
from tasks.evidence import number_text
from tasks.report.flip_pictures import Flips
from tasks.report.headline import headline, tiles
from tasks.report.kept_plot import kept_png, kept_svg
from tasks.report.layer_table import chosen_candidate, layer_table
from tasks.report.pareto_plot import outside
from tasks.report.plot_points import family_of, plot_families
from tasks.report.run_report import RunReport
from tasks.report.search_curve import curve_svg
from tasks.report.search_view import candidate_lines, control_sentence, ending, mix_sentence, nearest, search_verdict
from tasks.report.sequence_view import front_sentence, gap_sentence, sequence_lines, sequence_order
from tasks.report.serving_cost import cost_rows
from tasks.report.shortlist import shortlist

HTML, CARD, PLOT, JSON = "report.html", "model_card.md", "pareto.png", "report.json"
_MAX_CLASSES = 40


@dataclass(frozen=True)
class ClassRow:
    """One class on the test split; ``share`` is its difference as a percentage of the largest one."""

    label: str
    baseline: float
    chosen: float
    difference: float
    """Positive: the chosen variant is better."""
    share: float

    @property
    def tone(self) -> str:
        return "yes" if self.difference > 0 else "no" if self.difference < 0 else "soft"


def write_report(report: RunReport, folder: Path, flips: Flips | None = None) -> dict[str, Path]:
    """Write all four files, whatever became of the run; returns them by name.

    Args:
        flips: the test samples whose answers changed, where the test split was used.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        JSON: report.to_json() + b"\n",
        HTML: render_html(report, flips).encode(),
        CARD: render_card(report, flips).encode(),
        PLOT: kept_png(report),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in contents}


def render_html(report: RunReport, flips: Flips | None = None) -> str:
    """The page: one file, light and dark, nothing loaded from elsewhere."""
    from markupsafe import Markup

    plot, curve = Markup(kept_svg(report)), Markup(curve_svg(report))  # built by us, with every text escaped
    template = _environment(report, escape=True).get_template(HTML)
    return str(template.render(_values(report, flips), plot=plot, curve=curve, outside=outside(report)))


def render_card(report: RunReport, flips: Flips | None = None) -> str:
    """The model card in Markdown."""
    text: str = _environment(report, escape=False).get_template(CARD).render(_values(report, flips))
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text.strip() + "\n"


def _values(report: RunReport, flips: Flips | None) -> dict[str, Any]:
    import yaml

    name = report.metric.name if report.metric else "metric"
    candidate = chosen_candidate(report)
    return {
        "run": report,
        "headline": headline(report),
        "tiles": tiles(report),
        "metric": name,
        "unit": "points" if number_text.is_share(name) else name,
        "families": plot_families(report),
        "shortlist": shortlist(report),
        "verdict": search_verdict(report),
        "ending": ending(report.search) if report.search else "",
        "control": control_sentence(report),
        "mixes": mix_sentence(report),
        "nearest": nearest(report),
        "candidates": candidate_lines(report),
        "layers": layer_table(report),
        "precision": report.layers.precision if report.layers else None,
        "pruned_as": candidate.name if candidate else "",
        "costs": cost_rows(report),
        "flips": flips if flips and (flips.worse.total or flips.better.total) else None,
        "classes": _classes(report),
        "speaks": any(v.bits_per_byte is not None for v in report.variants),
        "asked": [s for s in (report.decision.scored if report.decision else ()) if s.choices],
        "sequence": sequence_lines(report),
        "order": sequence_order(report),
        "front": front_sentence(report),
        "gap": gap_sentence(report),
        "chosen": report.row(report.chosen),
        "lineage": _lineage(report),
        "longest": max((s.seconds for s in report.stages), default=0.0) or 1.0,
        "spec_text": yaml.safe_dump(report.spec, sort_keys=False),
        "winnow_version": importlib.metadata.version("winnow-mlops"),
    }


def _classes(report: RunReport) -> list[ClassRow]:
    scored = {s.role: s for s in report.decision.scored} if report.decision else {}
    if not {"chosen", "baseline"} <= scored.keys() or not 0 < len(scored["chosen"].per_class) <= _MAX_CLASSES:
        return []
    chosen, baseline = scored["chosen"], scored["baseline"]
    sign = 1.0 if chosen.metric.better == "higher" else -1.0
    pairs = {
        label: (baseline.per_class[label].value, metric.value)
        for label, metric in chosen.per_class.items()
        if label in baseline.per_class
    }
    largest = max((abs(after - before) for before, after in pairs.values()), default=0.0) or 1.0
    return [
        ClassRow(label, before, after, sign * (after - before), 100 * abs(after - before) / largest)
        for label, (before, after) in pairs.items()
    ]


def _lineage(report: RunReport) -> list[str]:
    """Digests from the first ancestor known to the chosen variant."""
    chain, current = [], report.chosen
    while current is not None and current not in chain:
        chain.append(current)
        row = report.row(current)
        current = row.parents[0] if row and row.parents else None
    return chain[::-1]


def _environment(report: RunReport, *, escape: bool) -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=escape,
    )
    name = report.metric.name if report.metric else ""
    environment.filters |= {
        "metric": lambda value: number_text.metric_text(value, name),
        "metric_range": lambda interval: number_text.metric_range(interval, name),
        "gate": lambda value, unit: number_text.gate_number(value, unit, name),
        "difference": lambda value: number_text.difference_text(value, name),
        "ms": number_text.ms_text,
        "ms_range": number_text.ms_range,
        "size": size_text,
        "kilobytes": lambda size: number_text.ms_text(size / KB),
        "family": lambda row: family_of(row, report),
        "count": number_text.count_text,
        "bits": number_text.bits_text,
        "percent": lambda share: number_text.metric_text(share, "accuracy"),
        "percent_range": lambda interval: number_text.metric_range(interval, "accuracy"),
        "points": lambda loss: number_text.points(loss, "accuracy"),
        "speedup": lambda found: number_text.times_text(found.value) if found else "–",
        "seconds": number_text.seconds_text,
        "times": number_text.times_text,
        "text": lambda text: text.replace("<", "&lt;"),  # Markdown lets HTML through
        "cell": lambda text: " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;"),
        "capitalize_first": lambda text: text[:1].upper() + text[1:],
    }
    return environment
