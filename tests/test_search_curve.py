"""The curve of the best so far, and what the first training said about labels and teacher, in the report."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from searches import search_report

from tasks.evidence.search_summary import BestSoFar, MixTried
from tasks.report.pages import render_html
from tasks.report.run_report import RunReport
from tasks.report.search_curve import curve_svg
from tasks.report.search_view import ending, mix_sentence

SVG = "{http://www.w3.org/2000/svg}"


def report(objective: str = "latency", chosen: float = 0.0) -> RunReport:
    made = search_report()
    assert made.search is not None
    best = [
        BestSoFar(seconds=s, name=f"v<{s:g}>", digest="a" * 64, cost=1 / x, bytes=size, speedup=x, loss=0.0)
        for s, x, size in ((60, 1.8, 1_000_000), (400, 6.0, 300_000), (900, 13.0, 90_000))
    ]
    mixes = [
        MixTried(candidate="pruned14", alpha=a, temperature=4, views=None, metric=0.9 + 0.01 * (a == chosen), loss=0.3,
                 chosen=a == chosen)
        for a in (0.0, 0.5)
    ]  # fmt: skip
    changes = {"objective": objective, "curve": tuple(best), "mixes": tuple(mixes), "planning_seconds": 80.0}
    return made.model_copy(update={"search": made.search.model_copy(update=changes)})


_WORDS = [("latency", "faster"), ("size", "smaller"), ("throughput", "faster"), ("both", "faster and smaller")]


@pytest.mark.parametrize(("objective", "word"), _WORDS)
def test_the_curve_rises_to_the_right(objective: str, word: str) -> None:
    root = ElementTree.fromstring(curve_svg(report(objective)))
    circles = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in root.iter("circle")]
    assert circles == sorted(circles, key=lambda xy: (xy[0], -xy[1])) and len(circles) == 3
    titles = [t.text or "" for c in root.iter("circle") for t in c.iter("title")]
    assert titles[0].startswith("v<60>: ") and all(word in title for title in titles)
    assert "13.0 times faster" in titles[2] or objective in ("size", "both")


def test_without_anything_proven_there_is_no_curve() -> None:
    made = report()
    assert made.search is not None
    assert curve_svg(made.model_copy(update={"search": made.search.model_copy(update={"curve": ()})})) == ""
    assert curve_svg(made.model_copy(update={"search": None})) == ""


def test_the_page_shows_curve_and_mix() -> None:
    page = render_html(report())
    assert "The best so far" in page and "holds its pupils back" in page
    assert mix_sentence(report(chosen=0.5)).endswith("learned from the teacher's answers with a share of 50%.")
    made = report()
    assert made.search is not None
    assert "(1 min 20 s before the first training)" in ending(made.search)


def test_a_candidate_that_taught_the_others_has_a_sentence_of_its_own() -> None:
    made = report()
    assert made.search is not None
    later = [
        MixTried(candidate="pruned08", alpha=0.5, temperature=4, views=None, metric=0.94, loss=0.2, chosen=True,
                 teacher="pruned14-r2"),
        MixTried(candidate="pruned08", alpha=0.0, temperature=4, views=None, metric=0.93, loss=0.2),
    ]  # fmt: skip
    search = made.search.model_copy(update={"mixes": (*made.search.mixes, *later)})
    said = mix_sentence(made.model_copy(update={"search": search}))
    assert "pruned14-r2 does better than the teacher" in said and "its answers at 50% 94.0 %" in said
    assert said.endswith("later ones learned from pruned14-r2 too.") and "holds its pupils back" in said
    alone = made.search.model_copy(update={"mixes": tuple(later)})
    assert mix_sentence(made.model_copy(update={"search": alone})).startswith("pruned14-r2 does better")
    diverged = made.search.model_copy(update={"mixes": (*made.search.mixes, later[1])})
    assert "does better" not in mix_sentence(made.model_copy(update={"search": diverged}))
