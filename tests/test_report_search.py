"""The report of a search: every candidate with its files and reasons, the limits, the layers, on one page."""

from __future__ import annotations

import re
import struct
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from measurements import run_report
from searches import LAYERS, search_report

from model_registry.manifest import FileEntry
from model_registry.variant import Variant
from tasks.report.budget_limits import BudgetLimits, limits_of
from tasks.report.chosen_layers import chosen_layers
from tasks.report.headline import headline
from tasks.report.layer_table import layer_table
from tasks.report.pages import render_card, render_html, write_report
from tasks.report.pareto_plot import outside, pareto_png, pareto_svg
from tasks.report.plot_frame import plot_frame
from tasks.report.plot_points import family_of, labelled, plot_points
from tasks.report.run_report import MetricName, RunReport
from tasks.report.search_view import candidate_lines, control_sentence, nearest, search_verdict
from tasks.report.serving_cost import cost_rows
from tasks.report.shortlist import shortlist
from tasks.running.stage import Outcome

VOID = {"meta", "br", "path", "circle", "rect", "image", "use"}


class Page(HTMLParser):
    """Visible text, by table row too, and everything that the page would load; fails on tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.text = ""
        self.rows: list[str] = []
        self.feed(html)
        self.rows = [" ".join(row.split()) for row in self.rows]
        self.text = " ".join(self.text.split())
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append("")
        self.loads += [v or "" for k, v in attrs if k in {"src", "srcset", "data"} or (k == "href" and tag != "a")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += f" {data}"
            if "tr" in self.open:
                self.rows[-1] += f" {data}"


def unmet(**limits: float) -> RunReport:
    return search_report("refused", p95_ms=limits.get("p95_ms", 0.05), max_bytes=int(limits.get("max_bytes", 60_000)))


def test_the_page_holds_every_candidate_with_its_files_the_cheapest_first() -> None:
    report = search_report()
    assert report.search is not None
    page = Page(render_html(report))
    lines = candidate_lines(report)
    assert [line.row.name for line in lines[:3]] == ["pruned08", "student3", "pruned12"]
    assert lines[-1].row.name == "student4" and lines[-1].cost == "–"  # never measured: last
    costs = [line.row.cost for line in lines[:-1]]
    assert len(lines) == 12 and all(a <= b for a, b in pairwise(costs))
    table = [row for row in page.rows if any(c.name in row for c in report.search.candidates)]
    for candidate in report.search.candidates:
        assert candidate.reason in page.text and candidate.what in page.text
        for form in candidate.forms:
            assert any(form.name in row for row in table), form.name
    whole = next(row for row in page.rows if "pruned25 teacher" in row)
    assert "keeps the budget" in whole and "4 of 4 trainings" in whole and "6.9 → 2.8 → 0.8 → 0.6" in whole
    chosen = next(row for row in page.rows if "pruned25-r4.int8-static chosen 0.0487" in row)
    assert chosen.split()[2:] == ["0.0487", "0.0633", "113", "0.8", "2.46", "9.45×", "none"]
    untrained = next(row for row in page.rows if "pruned08.int8-static" in row)
    assert "untrained" in untrained and "83" not in untrained  # a loss without training says nothing


def test_a_budget_that_is_kept_is_said_with_its_limits_the_end_and_what_the_teacher_gained() -> None:
    report = search_report()
    text = Page(render_html(report)).text
    assert search_verdict(report) == (
        "pruned25-r4.int8-static keeps the budget (at most 2.50 points of accuracy lost, p95 at most 0.3 ms, file at "
        "most 400 kB) on validation."
    )
    assert search_verdict(report) in text and "24 trainings, 18 min 13 s of computing" in text
    assert "Nothing cheaper than the best one may reach the margin." in text
    assert "accuracy on validation by +3.1 points" in control_sentence(report) and control_sentence(report) in text
    assert "Why each candidate failed" not in text


def test_a_teacher_that_holds_the_best_structure_back_is_named_with_the_remedy() -> None:
    report = search_report()
    assert report.search is not None

    def with_control(**changes: float) -> str:
        assert report.search is not None
        control = {"gain": -0.016, "low": -0.02, "high": -0.012, "p": 1e-6, **changes}
        return control_sentence(
            report.model_copy(update={"search": report.search.model_copy(update={"control": control})})
        )

    assert "by −1.6 points" in with_control() and "distill.alpha" in with_control()
    noise = with_control(p=0.3, high=0.01)
    assert "within the noise" in noise and "distill.alpha" not in noise


def test_a_budget_that_cannot_be_met_is_the_headline_with_the_nearest_and_all_reasons() -> None:
    report = unmet()
    sentence = headline(report).sentence
    assert sentence.startswith("The budget (at most 2.50 points of accuracy lost, p95 at most 0.05 ms")
    assert (
        "cannot be met: of 12 candidates 6 lose too much, 2 were given up, 2 were not reached, 1 is over it" in sentence
    )
    assert "Nearest is pruned25-r4.int8-static: its p95 is 0.0633 ms where 0.05 ms are allowed" in sentence
    assert sentence.endswith("Nothing was registered.")
    page = Page(render_html(report))
    assert "Why each candidate failed, the nearest first" in page.text
    assert "PruningRefused: layer 'head' would be left without channels" in page.text
    assert page.text.count("cannot be met") == 1
    order = [row.name for row, _ in nearest(report)]
    assert order[0] == "pruned25" and set(order[-2:]) == {"pruned08", "student3"}  # untrained ones come last


def test_the_nearest_is_named_by_what_it_loses_where_only_that_is_too_much() -> None:
    report = search_report("refused", p95_ms=0.08, max_bytes=75_000)
    assert "it may lose 5.21 points of accuracy (95 % bound) where 2.50 points are allowed" not in search_verdict(
        report
    )
    assert "nearest is pruned25-r4" in search_verdict(report).lower()
    form = nearest(report)[0][1]
    assert BudgetLimits(None, None, 50_000).exceeded(form, "accuracy") == [
        f"its file has {form.bytes / 1000:.0f} kB where 50.0 kB are allowed"
    ]
    assert BudgetLimits(0.001, None, None).exceeded(form, "accuracy")[0].startswith("it may lose ")
    assert form.speedup_low is not None and form.shrink is not None
    ratios = BudgetLimits(None, None, None, speedup=20.0, shrink=50.0)
    assert ratios.exceeded(form, "accuracy") == [
        f"it is {form.speedup_low:.2f}× as fast as the baseline (95 % bound) where 20× are asked",
        f"its file is {form.shrink:.2f}× smaller than the baseline's where 50× are asked",
    ]
    assert ratios.excess(form) == pytest.approx(max(20 / form.speedup_low, 50 / form.shrink) - 1)
    assert BudgetLimits(None, None, None, speedup=form.speedup_low, shrink=form.shrink).exceeded(form, "a") == []
    assert ratios.text("accuracy") == "at least 20× as fast, file at least 50× smaller"
    asked = search_report().model_copy(update={"search": None, "spec": {"gates": {"min_speedup": 2.0}}})
    assert limits_of(asked) == BudgetLimits(None, None, None, speedup=2.0)
    relative = asked.model_copy(update={"spec": {"gates": {"margin": 0.02, "relative_margin": 0.01}}})
    baseline = relative.row(relative.baseline)
    assert baseline is not None and limits_of(relative).margin == pytest.approx(0.01 * baseline.metric.value)
    text = BudgetLimits(0.0103, None, None, share=0.01).text("mse")
    assert text == "at most 1 % of the baseline's metric (0.0103 of mse) lost"


def test_a_search_answered_from_the_store_says_so() -> None:
    report = search_report()
    assert report.search is not None
    stored = report.search.model_copy(update={"resolved_from": "20261101-000000-glyphs-aaaa"})
    text = Page(render_html(report.model_copy(update={"search": stored}))).text
    assert "Stored measurements of run 20261101-000000-glyphs-aaaa answered; nothing was trained." in text
    assert "under the budget that it had" in text


def test_layers_show_damage_what_was_removed_and_what_fell_back() -> None:
    report = search_report()
    table = layer_table(report)
    assert table is not None and table.shares == ("12.5 %", "25 %", "50 %", "75 %")
    assert [row.name for row in table.rows] == list(LAYERS)
    heats = [h.share for h in table.rows[0].damages if h]
    assert heats == sorted(heats) and 0 <= heats[0] < heats[-1] <= 0.8
    assert table.rows[1].removed == 0.31 and table.rows[1].channels == (64, 55)
    page = Page(render_html(report))
    assert any("block1.conv1 0.00069" in row and "31 %" in row and "64 → 55" in row for row in page.rows)
    assert "6 of 7 layers of the chosen variant are quantized, 98.1 %" in page.text
    assert "up of layer 0" in page.text and "0.01230" in page.text
    assert "Conv stem.weight [32, 3, 3, 3]" in page.text
    assert layer_table(run_report()) is None and "Layer by layer" not in render_html(run_report())


def test_very_many_shares_become_tenths() -> None:
    report = search_report()
    assert report.search is not None
    fine = {"wide": {str(i / 64): i / 64 for i in range(1, 64)}, "odd": {"0.07": 2.0}}
    table = layer_table(report.model_copy(update={"search": report.search.model_copy(update={"sensitivity": fine})}))
    assert table is not None and len(table.shares) == 10
    odd = next(row for row in table.rows if row.name == "odd")
    assert [h.text if h else None for h in odd.damages[:2]] == ["2", None]


def test_what_became_of_the_layers_is_found_along_the_ancestors() -> None:
    def variant(name: str) -> Variant:
        file = FileEntry(path="model.onnx", sha256=f"{len(name):064d}", size=len(name))
        return Variant(name=name, stage="x", format="onnx", files=(file,), inputs=(), outputs=())

    teacher, pruned, tuned, int8 = (variant(n) for n in ("teacher", "pruned", "pruned-r2", "pruned-r2.int8"))

    def outcome(made: Variant, **values: object) -> Outcome:
        return Outcome(stage="x", name="x", status="computed", seconds=0.0, key="k", version="v", variants=(made,),
                       values=values)  # fmt: skip

    counted = {"quantized": 3, "quantizable": 4, "share": None, "fp32_layers": ["Conv a"], "bytes": 7, "name": "x"}
    outcomes = [
        outcome(teacher),
        outcome(pruned, layers={"a": [16, 4]}, variants={pruned.digest: {"name": "pruned"}}),
        outcome(tuned, layers=12),  # quantization-aware training counts them
        outcome(int8, variants={int8.digest: counted}),
    ]
    parents = {int8.digest: (tuned.digest,), tuned.digest: (pruned.digest, teacher.digest), pruned.digest: ()}
    found = chosen_layers(int8.digest, outcomes, parents)
    assert found is not None and found.channels == {"a": (16, 4)}
    assert found.precision is not None and found.precision.fp32_layers == ("Conv a",)
    assert chosen_layers(teacher.digest, outcomes, parents) is None
    assert chosen_layers(pruned.digest, outcomes, {pruned.digest: (pruned.digest,)}) is not None  # a circle ends


def test_serving_costs_stand_beside_the_baselines() -> None:
    rows = {row.what: row for row in cost_rows(search_report())}
    cpu = rows["processor time of 1000 requests of one sample, 64 at a time"]
    assert (cpu.baseline, cpu.chosen, cpu.change) == ("460 ms", "48.7 ms", "9.4× less")
    assert rows["file"].change == "35.5× smaller"
    assert rows["resident memory of a process that serves it, at its peak"].baseline == "70.3 MB"
    assert cost_rows(run_report("failed")) == []
    report = search_report()
    assert cost_rows(report.model_copy(update={"chosen": report.baseline})) == []


@pytest.mark.parametrize(("repeat", "count"), [(1, 28), (2, 52)])
def test_the_plots_stay_readable_however_many_there_are(repeat: int, count: int) -> None:
    report = search_report(repeat=repeat)
    points = plot_points(report)
    assert len(points) == count
    svg = pareto_svg(report)
    assert 6 <= svg.count('<g class="label"') <= 28  # in both plots together
    assert svg.count('<g class="point"') == svg.count("<title>") == 2 * len(points)
    for text in ("pruned25-r4.int8-static · chosen", "teacher.fp32 · baseline", "95.8 %: baseline less 2.50 points"):
        assert svg.count(f">{text}<") == 2
    assert "p95 limit 0.3 ms" in svg and "size limit 400 kB" in svg


def test_the_plot_of_the_page_takes_its_colours_and_fonts_from_the_page() -> None:
    html = render_html(search_report())
    svg = html[html.index('<svg class="plot"') :].partition("</svg>")[0]
    assert "var(--s3)" in svg and "var(--bad)" in svg and "var(--card)" in svg
    assert not re.search(r"#[0-9a-f]{3}|font-family|url\(| id=|xmlns|<use|<style|rgb", svg)
    defined = set(re.findall(r"(--[a-z0-9]+):", html.partition("</style>")[0]))
    assert set(re.findall(r"var\((--[a-z0-9]+)\)", svg)) <= defined


def test_far_limits_are_told_below_the_plot() -> None:
    report = search_report(p95_ms=50.0)
    assert outside(report) == ("p95 limit 50.0 ms",) and "p95 limit" not in pareto_svg(report)
    assert "not shown: p95 limit 50.0 ms" in Page(render_html(report)).text


def test_the_picture_of_a_search_has_both_plots() -> None:
    assert struct.unpack(">II", pareto_png(search_report())[16:24]) == (1600, 1920)


def test_families_have_colours_and_refused_ones_are_hollow() -> None:
    report = search_report()
    families = {row.name: family_of(row, report) for row in report.variants}
    assert families["teacher.int8-static"] == "teacher" and families["pruned25-r4.fp32"] == "pruned"
    assert families["student2-r2.fp32"] == "student" and families["control-pruned25-r4.fp32"] == "control"
    points = {p.name: p for p in plot_points(report)}
    assert points["student2-r2.fp32"].fails and not points["pruned25-r4.int8-static"].fails
    assert labelled([points["student2-r2.fp32"]], []) == [points["student2-r2.fp32"]]


def test_hopeless_candidates_do_not_squeeze_the_others_and_far_limits_are_only_told() -> None:
    report = search_report()
    points = plot_points(report)
    metric = MetricName(name="accuracy", better="higher")
    frame = plot_frame(points, metric, limits_of(report), axis="latency", deep=False)
    assert frame.up.low > 80 and sum(map(frame.below, points)) == 3
    assert plot_frame(points, metric, limits_of(report), axis="latency", deep=True).up.low < 65
    far = plot_frame(points, metric, BudgetLimits(0.025, 50.0, None), axis="latency", deep=False)
    assert far.most is None and far.beyond == ("p95 limit 50.0 ms",) and far.least is not None
    lower = plot_frame(points, MetricName(name="error", better="lower"), limits_of(report), axis="size", deep=False)
    assert lower.least is not None and lower.least.value > points[0].metric  # worse is more


def test_the_best_one_is_marked_where_nothing_was_chosen() -> None:
    report = search_report("failed")
    assert report.search is not None and report.chosen is None
    assert "pruned25-r4.int8-static · best on validation" in pareto_svg(report)
    assert "best on validation" in Page(render_html(report)).text


def test_the_variants_table_is_short_and_the_rest_is_folded_away() -> None:
    report = search_report()
    names = [row.name for row in shortlist(report)]
    assert names == ["teacher.fp32", "pruned25-r4.int8-static", "pruned25-r4.int8-dynamic"]
    assert shortlist(run_report()) == run_report().variants
    html = render_html(report)
    assert "<details><summary>All 28 variants" in html and html.index("All 28 variants") < html.index(
        "student1-r3.fp32<"
    )
    assert "student4" not in {row.name for row in shortlist(unmet())} and len(shortlist(unmet())) > 3
    assert "All 10 variants" not in render_html(run_report())


def test_text_of_candidates_is_escaped_and_nothing_is_loaded(tmp_path: Path) -> None:
    report = search_report()
    assert report.search is not None
    evil = "<img src=http://x/y.png onerror=alert(1)> | `a` $x$ {{ 7*7 }}"
    candidates = tuple(
        c.model_copy(
            update={
                "name": evil,
                "what": evil,
                "reason": evil,
                "settings": {"ratios": {evil: 0.5}},
                "forms": tuple(f.model_copy(update={"name": evil, "fails": (evil,)}) for f in c.forms),
            }
        )
        for c in report.search.candidates
    )
    search = report.search.model_copy(
        update={"candidates": candidates, "ended": evil, "resolved_from": evil, "sensitivity": {evil: {"0.5": 1.0}}}
    )
    variants = tuple(v.model_copy(update={"name": evil}) for v in report.variants)
    for best in (search.best, None):
        hostile = report.model_copy(
            update={"search": search.model_copy(update={"best": best}), "variants": variants, "model": evil}
        )
        html = render_html(hostile)
        assert "<img" not in html and "&lt;img src=http://x/y.png" in html
        page = Page(html)
        assert page.loads == [] and "script" not in html and not re.search(r"url\(|@import", html)

    files = write_report(hostile, tmp_path / "report")  # $x$ is no formula in the plot either
    card = files["model_card.md"].read_text()
    assert "<img" not in card.split("## Ask it")[0] and "\\| `a`" in card


@pytest.mark.parametrize("status", ["released", "registered", "refused", "failed", "crashed", "interrupted"])
def test_every_end_of_a_search_has_its_pages(status: str) -> None:
    report = search_report(status)  # type: ignore[arg-type]
    page = Page(render_html(report))
    assert headline(report).sentence in page.text and "None" not in page.text and "nan" not in page.text.split()
    card = render_card(report)
    assert "## Search" in card and "| pruned25 | teacher pruned to 25% of its latency | keeps the budget |" in card
    assert "{%" not in card and "None" not in card
    assert RunReport.model_validate_json(report.to_json()) == report


def test_an_empty_search_is_shown_too() -> None:
    report = search_report("failed")
    assert report.search is not None
    empty = report.search.model_copy(update={"candidates": (), "best": None, "sensitivity": {}, "control": {}})
    bare = run_report("failed", search=empty)
    text = Page(render_html(bare)).text
    assert "cannot be met: of 0 candidates none was made." in text and "Candidates, the cheapest first" in text
    assert pareto_svg(bare) == "" and "## Search" in render_card(bare)
