"""A run's result in the terminal: a row per variant, the gates, the addresses, and a line to paste."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from model_registry.sizes import size_text
from tasks.evidence.number_text import (
    count_text,
    gate_number,
    metric_range,
    metric_text,
    ms_range,
    ms_text,
    seconds_text,
)
from tasks.report.headline import headline
from tasks.report.ratio_text import faster_text, smaller_text
from tasks.report.run_report import RunReport, VariantRow
from tasks.report.search_view import control_sentence, ending, mix_sentence, nearest, search_verdict
from tasks.report.sequence_view import front_sentence, gap_sentence, sequence_sentence
from tasks.report.shortlist import shortlist

_COLOURS = {"good": "green", "warn": "yellow", "bad": "red"}
_COLUMNS = ("metric", "size", "p50 ms", "p95 ms", "speed-up", "samples/s", "peak memory")
_BRIEF = ("metric", "size", "smaller", "faster")
"""What the end of a run shows: ratios to the baseline. Latencies of different minutes would seem to contradict them."""
_FILE_WIDTH = 180
"""Columns where the output is no terminal: a log must not be cut at 80."""
_NEAREST = 3
"""Candidates that are shown where the budget was not met."""


def print_report(report: RunReport, *, folder: Path | None = None) -> None:
    """Print everything a person wants to know at the end of a run; ``folder`` is where its pages were written."""
    console, head = open_console(), headline(report)
    title = f"{report.model} version {report.version}" if report.version else report.model
    colour = _COLOURS[head.tone]
    console.print(f"\n[bold]{title}[/]  [bold {colour}]{head.word}[/] in {seconds_text(report.seconds)}")
    console.print(head.sentence, highlight=False, markup=False)
    if report.variants:
        _print_variants(report, console, _BRIEF)
    if report.search is not None:
        _print_search(report, console)
    decision, passed = report.decision, report.status in ("released", "registered")
    if decision and not passed:
        console.print(gates(report))
    if told := sequence_sentence(report):
        console.print(told, highlight=False, markup=False)
    if front := front_sentence(report):
        console.print(front, highlight=False, markup=False)
    if gap := gap_sentence(report):
        console.print(Text.assemble(("warning: ", "yellow"), gap))
    if report.error and not passed and report.status != "refused":
        console.print(f"\n[bold red]{report.error.type}[/] in stage [bold]{report.error.stage}[/]", highlight=False)
        console.print(report.error.message, highlight=False, markup=False)
        if report.error.log:
            console.print(f"Log: {report.error.log}", highlight=False, markup=False, soft_wrap=True)
        if report.error.resume:
            console.print(f"Continue with: [bold]{report.error.resume}[/] (finished stages are kept)", highlight=False)
    for form in report.targets if passed else ():
        if form.state == "proven":
            console.print(f"Target {form.target} is proven: {form.reason}.", highlight=False, markup=False)
    for gate in decision.warnings if decision and passed else ():
        number = gate_number(gate.value, gate.unit, report.metric.name if report.metric else "")
        console.print(Text.assemble(("warning: ", "yellow"), f"not {gate.gate}: {gate.meaning} is {number}"))
    for warning in report.warnings:
        console.print(Text.assemble(("warning: ", "yellow"), warning))
    for note in report.notes:
        console.print(note, highlight=False, markup=False)
    _print_addresses(report, folder, console)


def print_variants(report: RunReport) -> None:
    """Print the table of variants alone, with everything that was measured."""
    _print_variants(report, open_console(), _COLUMNS)


def print_stages(report: RunReport) -> None:
    """Print the stages with their times, and why those that were computed were."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("stage", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("why")
    for line in report.stages:
        style = {"reused": "green", "failed": "bold red", "skipped": "dim"}.get(line.status, "default")
        table.add_row(line.name, Text(line.status, style=style), seconds_text(line.seconds), Text(line.reason))
    open_console().print(table)


def open_console() -> Console:
    """Standard output, wide where it is no terminal."""
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        return Console(width=_FILE_WIDTH)
    return console


def _print_variants(report: RunReport, console: Console, columns: Sequence[str]) -> None:
    console.print(variants(report, console, columns))
    console.print(f"[dim]{_conditions(report)}[/]", highlight=False)
    more = len(report.variants) - len(shortlist(report))
    left = f"{more} more variants are in the report. " if more else ""
    if columns == _BRIEF:
        left += f"Latencies, throughput and memory: winnow compare {report.run_id}"
    if left:
        console.print(f"[dim]{left}[/]", highlight=False, soft_wrap=True)


def _print_search(report: RunReport, console: Console) -> None:
    """How the search went; where the budget was not met, what became of the nearest candidates."""
    assert report.search is not None
    told = search_verdict(report)
    lines = [] if told in headline(report).sentence else [told]
    lines += [ending(report.search), mix_sentence(report), control_sentence(report)]
    console.print("\n" + " ".join(line for line in lines if line), highlight=False, markup=False)
    if report.search.best is not None:
        return
    for row, form in nearest(report)[:_NEAREST]:
        fails = f"; {form.name} would fail {', '.join(form.fails).replace('_', ' ')}" if form.fails else ""
        console.print(Text.assemble("  ", (row.name, "bold"), f" {row.state}: {row.reason}{fails}"))
    more = len(report.search.candidates) - _NEAREST
    if more > 0:
        console.print(f"  [dim]{more} more candidates are in the report.[/]", highlight=False)


def variants(report: RunReport, console: Console, columns: Sequence[str] = _COLUMNS) -> RenderableType:
    """The table of variants with these columns, of a search those of the shortlist.

    A line each where there is room, else intervals below their values, else two tables.
    """
    unlimited = console.options.update(width=1000)
    for tables in (
        [_variants(report, columns, stacked=False)],
        [_variants(report, columns, stacked=True)],
        [_variants(report, columns[:3], stacked=True), _variants(report, columns[3:], stacked=True)],
    ):
        if all(console.measure(table, options=unlimited).maximum <= console.width for table in tables):
            break
    return Group(*tables)


def _variants(report: RunReport, columns: Sequence[str], *, stacked: bool) -> Table:
    end = "\n" if stacked else " "
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("variant", no_wrap=True)
    if not stacked:
        table.add_column("stage", no_wrap=True)
    if any(row.bits_per_byte is not None for row in report.variants) and "metric" in columns:
        columns = ("metric", "bits/byte", *columns[1:])
    for column in columns:
        title = report.metric.name if column == "metric" and report.metric else column
        interval = f"{end}[dim]\\[95 %][/]" if column in ("metric", "p50 ms", "p95 ms") else ""
        table.add_column(escape(title) + interval, justify="right", no_wrap=True)
    for row in shortlist(report):
        chosen = row.digest == report.chosen
        mark = "chosen" if chosen else "baseline" if row.digest == report.baseline else ""
        if stacked:
            labels = [f"{escape(row.name)}\n[dim]{escape(row.stage)}{', ' + mark if mark else ''}[/]"]
        else:
            labels = [
                f"{escape(row.name)}{' ◀ ' + mark if chosen else f' ({mark})' if mark else ''}",
                escape(row.stage),
            ]
        cells = _cells(report, row, end)
        style = "bold green" if chosen and report.status != "refused" else None
        table.add_row(*labels, *(cells[column] for column in columns), style=style)
    return table


def _cells(report: RunReport, row: VariantRow, end: str) -> dict[str, str]:
    name = report.metric.name if report.metric else ""
    baseline = report.row(report.baseline)
    return {
        "metric": f"{metric_text(row.metric.value, name)}{end}[dim]{metric_range(row.metric.interval, name)}[/]",
        "bits/byte": "" if row.bits_per_byte is None else f"{row.bits_per_byte:.4g}",
        "size": size_text(row.bytes),
        "p50 ms": f"{ms_text(row.p50_ms)}{end}[dim]{ms_range(row.latency_interval.p50)}[/]",
        "p95 ms": f"{ms_text(row.p95_ms)}{end}[dim]{ms_range(row.latency_interval.p95)}[/]",
        "smaller": smaller_text(row, baseline),
        "speed-up": faster_text(row),
        "faster": faster_text(row),
        "samples/s": count_text(row.throughput),
        "peak memory": size_text(row.peak_rss_bytes),
    }


def gates(report: RunReport) -> Table:
    """What the gates said on the test split."""
    assert report.decision is not None
    name = report.metric.name if report.metric else ""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for title in ("", "gate", "what it looks at"):
        table.add_column(title)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("limit", justify="right", no_wrap=True)
    for gate in report.decision.gates:
        bad = "[bold red]refused[/]" if gate.severity == "critical" else "[yellow]warning[/]"
        sign = "≤" if gate.at_most else "≥"
        table.add_row(
            "[green]passed[/]" if gate.passed else bad,
            gate.gate.replace("_", " "),
            escape(gate.meaning),
            gate_number(gate.value, gate.unit, name),
            f"{sign} {gate_number(gate.limit, gate.unit, name)}",
        )
    return table


def _conditions(report: RunReport) -> str:
    if report.conditions is None or report.hardware is None:
        return ""
    c, h = report.conditions, report.hardware
    threads = f"{c.threads} thread{'s' * (c.threads > 1)}"
    return (
        f"{c.split} split, {c.samples} samples; {threads}, batch {c.batch}; {h.cpu}, {h.cores} cores, {h.cpu_class}; "
        f"ONNX Runtime {h.onnxruntime}"
    )


def _print_addresses(report: RunReport, folder: Path | None, console: Console) -> None:
    lines = [(name, url) for name, url in report.links.items()]
    if report.endpoint:
        lines.append(("endpoint", report.endpoint))
    if folder is not None:
        lines.append(("report", str(folder / "report.html")))
    if lines:
        console.print()
    for name, address in lines:
        console.print(Text.assemble(name.ljust(10), (address, "cyan")), soft_wrap=True)
    if report.curl:
        console.print("\nAsk it:", highlight=False)
        print(report.curl)  # as it is: rich would wrap it, and a wrapped line does not paste
