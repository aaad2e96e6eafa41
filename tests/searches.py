"""A made-up but plausible search: a dozen candidates in every state, each with its files, and the run around it."""

from __future__ import annotations

from typing import Any

from measurements import SAMPLES, decided, measured, run_report

from model_registry.measurement import Measurement
from tasks.evidence.search_summary import CandidateForm, CandidateRow, SearchSummary, State
from tasks.report.chosen_layers import ChosenLayers, GroupGrid, Precision
from tasks.report.run_report import RunReport, Status, describe_variants

MARGIN = 0.025
BASELINE_BYTES = 4_021_000
LAYERS = ("stem", "block1.conv1", "block1.conv2", "block2.conv1", "block2.conv2", "block3.conv1", "head.0")
# name, kind, trainings of four, median ms of fp32, bytes of fp32, (better, worse) against the baseline after each
TRIED: tuple[tuple[str, str, int, float, int, tuple[tuple[int, int], ...]], ...] = (
    ("teacher", "teacher", 4, 0.460, 4_021_000, ((0, 0),)),
    ("pruned70", "pruned", 1, 0.322, 2_400_000, ((2, 6),)),
    ("pruned50", "pruned", 2, 0.230, 1_310_000, ((2, 8), (2, 4))),
    ("pruned35", "pruned", 3, 0.161, 702_000, ((2, 15), (3, 9), (3, 5))),
    ("pruned25", "pruned", 4, 0.116, 420_000, ((3, 28), (2, 12), (3, 6), (3, 5))),
    ("pruned18", "pruned", 4, 0.083, 260_000, ((3, 61), (3, 33), (3, 17), (3, 14))),
    ("pruned12", "pruned", 1, 0.055, 151_000, ((2, 120),)),
    ("pruned08", "pruned", 0, 0.037, 90_000, ()),
    ("student1", "student", 3, 0.190, 640_000, ((3, 40), (3, 18), (3, 7))),
    ("student2", "student", 2, 0.098, 208_000, ((2, 90), (3, 44))),
    ("student3", "student", 0, 0.051, 84_000, ()),
    ("student4", "student", 0, 0.0, 0, ()),
)
STATES: dict[str, tuple[State, str]] = {
    "teacher": ("over the budget", "95th percentile latency, batch 1 0.598 > 0.3 ms"),
    "pruned18": ("loses too much", "95 % bound of the loss 0.0481 > 0.025"),
    "pruned12": ("given up", "95 % bound of the loss 0.38 > 0.025 after 1 of 4 trainings"),
    "pruned08": ("not reached", "a dearer candidate lost too much already, or the search ended before"),
    "student2": ("given up", "95 % bound of the loss 0.142 > 0.025 after 2 of 4 trainings"),
    "student3": ("not reached", "a dearer candidate lost too much already, or the search ended before"),
    "student4": ("failed", "PruningRefused: layer 'head' would be left without channels"),
}


def _forms(candidate: str, rung: int, p50: float, size: int, flips: tuple[int, int], baseline: Measurement,
           kind: str) -> list[Measurement]:  # fmt: skip
    label = candidate if kind == "teacher" else f"{candidate}-r{rung}" if rung else candidate
    up, down = flips
    shapes = [("fp32", 1.0, 1.0, 0), ("int8-static", 0.42, 0.27, 1), ("int8-dynamic", 0.9, 0.26, 0)]
    return [
        measured(
            f"{label}.{form}", baseline, stage="export" if form == "fp32" else "quantize", p50=round(p50 * speed, 4),
            right=354 + up - down - worse, flips=(up, down + worse), bytes=round(size * part),
            parameters=size // 4, macs=size * 3, peak_rss_bytes=(52 << 20) + 3 * round(size * part),
            cpu_seconds=p50 * speed,
        )
        for form, speed, part, worse in shapes
        if not (kind == "teacher" and form == "fp32")
    ]  # fmt: skip


def candidate_form(m: Measurement, p95_ms: float, max_bytes: int, *, trained: bool) -> CandidateForm:
    assert m.paired is not None
    fails = [] if m.paired.bound <= MARGIN or not trained else ["non_inferior_to_baseline"]
    fails += ["latency"] if m.p95_ms > p95_ms else []
    fails += ["size"] if m.bytes > max_bytes else []
    return CandidateForm(
        name=m.name, digest=m.digest, bytes=m.bytes, p50_ms=m.p50_ms, p95_ms=m.p95_ms, throughput=m.throughput.value,
        metric=m.metric.value, loss=-m.paired.difference, bound=m.paired.bound, cpu_seconds=m.cpu_seconds,
        speedup=m.speedup.value if m.speedup else None, fails=tuple(fails),
        speedup_low=m.speedup.interval[0] if m.speedup else None, shrink=BASELINE_BYTES / m.bytes,
    )  # fmt: skip


def search_report(
    status: Status = "released", *, p95_ms: float = 0.3, max_bytes: int = 400_000, repeat: int = 1, **fields: Any
) -> RunReport:
    """The report of a search whose budget is these limits and a margin of two points; it can be met or not.

    Args:
        repeat: make this number of times more candidates.
    """
    baseline = measured("teacher.fp32", p50=0.46, right=354, bytes=BASELINE_BYTES, parameters=1_005_000,
                        macs=12_300_000, peak_rss_bytes=67 << 20)  # fmt: skip
    measurements, rows = [baseline], []
    for copy in range(repeat):
        for name, kind, rung, p50, size, flips in TRIED:
            if copy and kind == "teacher":
                continue
            name, p50, size = name + "abcdefgh"[copy - 1] * bool(copy), p50 * (1 + copy / 9), size * (10 + copy) // 10
            made = _forms(name, rung, p50, size, flips[-1] if flips else (0, 300), baseline, kind) if p50 else []
            trained = bool(flips)
            forms = tuple(candidate_form(m, p95_ms, max_bytes, trained=trained) for m in made)
            if trained:
                measurements += made
            passing = [f for f in forms if trained and not f.fails]
            state = STATES.get(name, ("loses too much", "95 % bound of the loss 0.0272 > 0.025"))
            if passing:
                state = "keeps the budget", f"{passing[-1].name} fails no gate"
            rows.append(
                CandidateRow(
                    name=name,
                    kind=kind,
                    what="the teacher as it is"
                    if kind == "teacher"
                    else f"teacher pruned to {name[6:8]}% of its latency"
                    if kind == "pruned"
                    else "student width 0.5",
                    settings={"ratios": {n: round(0.2 + 0.11 * i, 2) for i, n in enumerate(LAYERS[:-1])}}
                    if kind == "pruned"
                    else {},
                    state=state[0],
                    reason=state[1],
                    rung=rung,
                    rungs=4,
                    losses=tuple((down - up) / SAMPLES for up, down in flips),
                    cost=min((f.p50_ms for f in forms), default=0.0),
                    seconds=31.5 * rung,
                    forms=forms,
                )
            )
    control = measured("control-pruned25-r4.fp32", baseline, p50=0.116, right=342, flips=(3, 15), bytes=420_000)
    measurements.append(control)
    kept = sorted((f.p50_ms, f.digest) for row in rows for f in row.forms if row.losses and not f.fails)
    best = kept[0][1] if kept else None
    by_digest = {m.digest: m for m in measurements}
    chosen = by_digest[best] if best else next(m for m in measurements if m.name == "pruned25-r4.int8-static")
    summary = SearchSummary(
        objective="latency",
        budget={"max_accuracy_drop": MARGIN, "p95_ms": p95_ms, "max_bytes": max_bytes, "threads": 1, "batch": 1},
        candidates=tuple(rows),
        best=best,
        trials=24,
        seconds=1093.0,
        ended="nothing cheaper than the best one may reach the margin" if best else "no candidate is left to train",
        sensitivity={
            name: {str(s): 0.0002 * (1 + i) * 9 ** (2 * s) for s in (0.125, 0.25, 0.5, 0.75)}
            for i, name in enumerate(LAYERS)
        },
        control={"gain": 0.031, "low": 0.012, "high": 0.052, "p": 0.0016} if best else {},
    )
    values: dict[str, Any] = {
        "model": "glyphs",
        **describe_variants(
            measurements,
            {m.digest: (baseline.digest,) for m in measurements[1:]},
            [m.digest for m in measurements if m.name.startswith("control")],
        ),
        "search": summary,
        "layers": ChosenLayers(
            channels={name: (64, 64 - 9 * i) for i, name in enumerate(LAYERS)},
            precision=Precision(
                quantized=6,
                quantizable=7,
                share=0.981,
                fp32_layers=("Conv stem.weight [32, 3, 3, 3]",),
                groups={"up of layer 0": GroupGrid(bits=4, block=64, bytes=1500, damage=0.0123)},
            ),
        ),
        "spec": {"model": "glyphs", "gates": {"margin": MARGIN}, "measure": {"predict_batch": 64}},
        "notes": (),
        "warnings": (),
    }
    if status not in ("failed", "crashed", "interrupted", "running"):
        values["chosen"] = chosen.digest
        values["decision"] = decided(chosen, baseline, passed=best is not None)
    return run_report(status, **(values | fields))
