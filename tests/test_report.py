"""The report: complete JSON, a page that stands alone, a plot with labels apart, whatever became of the run."""

from __future__ import annotations

import json
import re
import struct
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measurements import digits_measurements, measured, run_report

from flows.dead_runs import mark_dead_runs
from model_registry.measurement import MetricEstimate
from model_registry.sizes import GB, size_text
from model_registry.store import Store
from tasks.evidence import number_text
from tasks.report import pareto_plot as drawing
from tasks.report.headline import headline
from tasks.report.kept_plot import kept_png, kept_svg
from tasks.report.label_layout import Box, Spot, place_labels
from tasks.report.pages import render_card, render_html, write_report
from tasks.report.pareto_plot import pareto_png, pareto_svg
from tasks.report.plot_frame import fit_scale, tick_text
from tasks.report.plot_points import frontier, plot_points
from tasks.report.run_records import find_run, recent_runs
from tasks.report.run_report import RunError, RunReport, describe_variants, load_run, save_run
from tasks.running.errors import RunUnreadable

TOP = {"status", "model", "version", "endpoint", "baseline", "chosen", "hardware", "metric", "stages", "variants"}
VARIANT = {
    "name", "stage", "digest", "parents", "bytes", "metric", "accuracy", "p50_ms", "p95_ms", "latency_interval",
    "throughput", "peak_rss_bytes", "cpu_seconds", "parameters", "macs",
}  # fmt: skip


class Page(HTMLParser):
    """Collects tags, what they link to and the visible text; fails on tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.loads: list[str] = []
        self.text: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in {"meta", "br", "path", "circle", "rect"}:
            self.open.append(tag)
        self.loads += [v or "" for k, v in attrs if k in {"src", "srcset", "data"} or (k == "href" and tag != "a")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def test_report_json_has_the_promised_fields(tmp_path: Path) -> None:
    files = write_report(run_report("released"), tmp_path / "report")
    assert sorted(files) == ["model_card.md", "pareto.png", "report.html", "report.json"]
    found = json.loads(files["report.json"].read_bytes())
    assert found["schema"] == 1 and found.keys() >= TOP
    assert all(row.keys() >= VARIANT for row in found["variants"]) and len(found["variants"]) == 10
    row = found["variants"][1]
    assert row["metric"].keys() == {"value", "interval"} and len(row["metric"]["interval"]) == 2
    assert row["latency_interval"].keys() == {"p50", "p95"} and isinstance(row["throughput"], float)
    assert row["parents"] == [found["baseline"]]
    assert found["metric"] == {"name": "accuracy", "better": "higher"}
    assert all(s.keys() >= {"name", "status", "seconds"} for s in found["stages"])
    assert RunReport.model_validate(found) == run_report("released")


def test_a_record_is_stored_and_read_again(store: Store) -> None:
    report = run_report("refused")
    save_run(store, report)
    assert load_run(store, report.run_id) == report
    assert load_run(store, "20200101-none") is None


def test_a_damaged_record_harms_only_its_own_run(store: Store) -> None:
    whole = run_report("registered", run_id="20261122-120455-digits-aaaa")
    save_run(store, whole)
    for number, data in enumerate((b"", b"{", b"[]", b'{"schema": 2}')):
        store.write_record(f"runs/20261122-13045{number}-digits-bbbb.json", data)
    assert [report.run_id for report in recent_runs(store, limit=5)] == [whole.run_id]
    assert find_run(store, "latest") == find_run(store, "digits") == whole
    assert mark_dead_runs(store) == []
    with pytest.raises(RunUnreadable, match=r"the record of run 20261122-130450-digits-bbbb cannot be read.*restore"):
        find_run(store, "20261122-130450")


@pytest.mark.parametrize("status", ["released", "registered", "refused", "failed", "crashed", "interrupted"])
def test_every_end_has_a_page_a_card_and_a_plot(status: Any, tmp_path: Path) -> None:
    report = run_report(status)
    page = Page(render_html(report))
    text = " ".join(page.text)
    assert headline(report).sentence in text and status in text and "{{" not in text and "None" not in text
    assert page.loads == [] and "script" not in page.tags and "@import" not in render_html(report)
    assert not re.search(r"url\(", render_html(report))
    card = render_card(report)
    assert card.startswith("# digits") and headline(report).sentence in card and "{%" not in card
    png = pareto_png(report)
    assert png[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", png[16:24]) == (1600, 960)
    if status == "refused":
        assert "3.91 points" in text and "non inferior to baseline" in text and "Nothing was registered" in text
    if status == "failed":
        assert "StageOutOfMemory" in text and "winnow run digits" in text
        assert "svg" not in page.tags


def test_text_from_outside_is_escaped() -> None:
    report = run_report("failed", model="a<b", warnings=("<script>alert(1)</script>",))
    assert "<script>" not in render_html(report) and "&lt;script&gt;" in render_html(report)
    rows = describe_variants([measured("<img src=x>")])
    assert "<img" not in render_html(run_report("refused", **rows, decision=None))


def test_equal_reports_give_equal_files() -> None:
    assert pareto_png(run_report()) == pareto_png(run_report())
    assert pareto_svg(run_report()) == pareto_svg(run_report())
    assert render_html(run_report()) == render_html(run_report())


def test_a_lower_is_better_metric_is_drawn_upwards_and_not_in_percent() -> None:
    def with_error(m: Any, value: float) -> Any:
        metric = MetricEstimate(name="mse", better="lower", value=value, interval=(value * 0.9, value * 1.1))
        return m.model_copy(update={"metric": metric, "accuracy": None, "per_class": {}})

    rows = [with_error(m, 0.5 + i / 10) for i, m in enumerate(digits_measurements())]
    report = run_report("registered", **describe_variants(rows), decision=None)
    html = render_html(report)
    assert "mse — up is better" in html and "0.5" in html and "50.0 %" not in html
    texts = re.findall(r'<g class="label"><text [^>]*y="([\d.]+)"[^>]*>([^<]+)<', html)
    labels = {name: float(height) for height, name in texts}
    assert labels["teacher.fp32 · baseline"] < labels["pruned.int8-dynamic"]  # smaller error, higher up
    points = plot_points(report)
    assert frontier(points, higher_is_better=False)[-1].name == "teacher.fp32"


def test_labels_lie_apart_from_points_and_each_other() -> None:
    spots = [Spot(100 + 7 * i, 200 + 5 * (i % 3), 8, 90, 16) for i in range(12)]
    labels = place_labels(spots, [], Box(0, 0, 900, 500))
    boxes = [label.box for label in labels]
    assert all(a.overlap(b) == 0 for a, b in combinations(boxes, 2))
    points = [Box(s.x - s.radius, s.y - s.radius, s.x + s.radius, s.y + s.radius) for s in spots]
    assert all(box.overlap(point) == 0 for box in boxes for point in points)
    assert all(b.left >= 0 and b.right <= 900 and b.low >= 0 and b.high <= 500 for b in boxes)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.floats(1e-6, 1e9), min_size=1, max_size=20), st.booleans())
def test_axes_hold_all_values(values: list[float], log: bool) -> None:
    scale = fit_scale(values, log=log)
    assert scale.low < scale.high and all(scale.inside(v) == v for v in values)
    assert scale.inside(scale.low - 1) == scale.low and scale.inside(2 * scale.high) == scale.high
    assert "e" not in tick_text(values[0]).replace("e+", "")


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("span", [1.2, 5.0, 1e5])
def test_axes_have_a_few_round_ticks(unit: float, span: float) -> None:
    made = digits_measurements()
    rows = [measured(m.name, p50=unit * span ** (i / (len(made) - 1))) for i, m in enumerate(made)]
    svg = pareto_svg(run_report("registered", **describe_variants(rows), decision=None))
    latency = [float(t) for t in re.findall(r'text-anchor: middle[^>]*y="[^>]*>([\d.]+)<', svg)]
    assert 2 <= len(latency) <= 9 and latency == sorted(latency)
    assert all(float(f"{tick:.4g}") == tick for tick in latency)  # round


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (number_text.metric_text(0.9722, "accuracy"), "97.2 %"),
        (number_text.metric_text(0.01234567, "mse"), "0.01235"),
        (number_text.difference_text(-0.0028, "accuracy"), "−0.3 points"),
        (number_text.points(0.0139, "top1 accuracy"), "1.39 points"),
        (size_text(100), "100 B"),
        (size_text(11_870), "11.9 kB"),
        (size_text(999_600), "1.00 MB"),
        (size_text(99_960), "100 kB"),
        (size_text(3 * GB), "3.00 GB"),
        (number_text.count_text(None), "–"),
        (number_text.count_text(1_230_000), "1.23 M"),
        (number_text.ms_text(0.01049), "0.0105"),
        (number_text.ms_text(128.4), "128"),
        (number_text.seconds_text(148.2), "2 min 28 s"),
        (number_text.seconds_text(3725), "1 h 02 min"),
        (number_text.gate_number(float("nan"), "loss", "accuracy"), "missing"),
        (number_text.gate_number(200_000, "bytes", ""), "200 kB"),
        (number_text.gate_number(0.9996, "metric", "accuracy"), "99.96 %"),
    ],
)
def test_numbers_read_well(found: str, wanted: str) -> None:
    assert found == wanted


def test_an_unchanged_plot_is_not_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("WINNOW_HOME", str(home))
    first = run_report()
    assert kept_png(first) == pareto_png(first) and kept_svg(first) == pareto_svg(first)
    drawn: list[RunReport] = []

    def draw(report: RunReport) -> bytes:
        drawn.append(report)
        return b"drawn"

    monkeypatch.setattr(drawing, "pareto_png", draw)
    monkeypatch.setattr(drawing, "pareto_svg", lambda report: draw(report).decode())
    later = first.model_copy(update={"run_id": "another", "seconds": 1.5, "status": "registered"})
    assert kept_png(later) == pareto_png(first) and kept_svg(later) == pareto_svg(first) and not drawn
    rows = first.variants
    slower = first.model_copy(update={"variants": (rows[0].model_copy(update={"p50_ms": 9.0}), *rows[1:])})
    other = first.model_copy(update={"chosen": rows[0].digest})
    for changed in (slower, other):
        assert kept_png(changed) == b"drawn" and kept_svg(changed) == "drawn"
    assert [report.variants for report in drawn] == [slower.variants, slower.variants, rows, rows]
    assert len(list((home / "cache").glob("pareto-*"))) == 2  # of each model the last one


def test_no_folder_is_made_for_a_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "none"))
    assert kept_png(run_report()) == pareto_png(run_report())
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_never_stands_without_its_reason() -> None:
    error = RunError(
        stage="validate", type="GateFailed", message="the teacher knows nothing yet: 0.1.\nTrain it longer"
    )
    sentence = headline(run_report("refused", chosen=None, decision=None, error=error)).sentence
    assert sentence == "The gates refused this run: the teacher knows nothing yet: 0.1. Nothing was registered."
