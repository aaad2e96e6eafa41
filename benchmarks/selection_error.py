"""How often a run releases a variant that truly loses the whole margin or more, in simulation: at most 1 in 20.

``python benchmarks/selection_error.py --repeats 400`` draws right and wrong answers of a baseline and of candidates
whose true losses are known, and lets the product's own functions choose, order and test them: the validation gates, the
fixed sequence (`tasks/validate/sequence.py`), Tango's bound. Three questions:

- Searches that look at 30 candidates, all of which lose exactly the margin: is one of them released too often?
- Sequences of four in which some or all lose too much: does testing several cost any error?
- Searches whose candidates lose from a little to too much: how often is nothing released, with one variant tested as
  before and with the sequence?

Candidates answer independently, or alike: then two of them share nine of ten draws.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).parent.parent))

from model_registry.measurement import Measurement, MetricEstimate, Speedup
from tasks.evidence.paired import Scores, compare_paired
from tasks.evidence.split_gap import split_gap
from tasks.validate.choice import choose, failing_gates
from tasks.validate.gate_spec import GateSpec
from tasks.validate.sequence import passed_in_order

MARGIN = 0.02
SPEC = GateSpec(margin=MARGIN, per_class_margin=None)
RIGHT, BACK = 0.96, 0.25
"""Share of samples that the baseline answers rightly; of its wrong ones, the share that a candidate answers rightly."""
ALIKE = 0.9
"""Share of draws that two candidates have in common."""
_BASE = "b" * 64


@dataclass
class Counts:
    """What came of the runs of a case."""

    runs: int = 0
    released: int = 0
    bad: int = 0
    """A variant was released that truly loses the margin or more."""
    alone_released: int = 0
    """Runs in which the cheapest alone would have been released."""
    alone_bad: int = 0
    bad_on_front: int = 0
    """Runs in which, with objective front, any of those proven loses the margin or more."""
    all_bad: int = 0
    """Runs in which a bad one would have been released had all been asked and the cheapest that passed been taken."""
    alarms: int = 0
    """Runs that said the splits differ; they never do here."""

    def share(self, count: int) -> str:
        """In percent, with twice its standard error."""
        share = count / max(1, self.runs)
        return f"{100 * share:.1f} ± {200 * (share * (1 - share) / max(1, self.runs)) ** 0.5:.1f} %"


@dataclass(frozen=True)
class Split:
    """Answers to ``rows`` samples: the baseline's scores [rows], and each candidate's [candidates, rows]."""

    baseline: Scores
    candidates: NDArray[np.float64]

    @classmethod
    def draw(cls, rng: np.random.Generator, truths: Sequence[float], *, rows: int, alike: float) -> Split:
        """``truths``: each candidate's true loss; ``alike``: share of draws that two of them have in common."""
        right = rng.random(rows) < RIGHT
        own, shared = rng.random((len(truths), rows)), rng.random(rows)
        draws = np.where(rng.random(own.shape) < alike**0.5, shared, own)
        lost = (np.array(truths)[:, None] + (1 - RIGHT) * BACK) / RIGHT  # of the samples that the baseline knows
        answers = np.where(right, draws >= lost, draws < BACK)
        return cls(right.astype(np.float64), answers.astype(np.float64))

    def measured(self, index: int, share: float) -> Measurement:
        """The candidate on this split; ``share``: its latency as a share of the baseline's. What no gate here looks at
        is left out."""
        paired = compare_paired(self.candidates[index], self.baseline, better="higher", reference=_BASE)
        interval = (0.99 / share, 1.01 / share)
        values: dict[str, Any] = {
            "digest": f"{index:064x}",
            "baseline": _BASE,
            "name": f"candidate {index}",
            "metric": MetricEstimate(name="accuracy", better="higher", value=0.9, interval=(0.9, 0.9)),
            "paired": paired,
            "speedup": Speedup(value=1 / share, interval=interval, verdict="faster"),
            "bytes": int(1e6 * share),
            "p50_ms": share,
        }
        return Measurement.model_construct(**values)

    def losses(self, index: int) -> Scores:
        """Against the baseline by sample, shape [rows]."""
        found: Scores = self.baseline - self.candidates[index]
        return found


def baseline() -> Measurement:
    """What the candidates are measured against."""
    metric = MetricEstimate(name="accuracy", better="higher", value=RIGHT, interval=(0.9, 1.0))
    values: dict[str, Any] = {"digest": _BASE, "baseline": _BASE, "name": "baseline", "metric": metric, "bytes": 10**6}
    return Measurement.model_construct(**values)


def search(rng: np.random.Generator, counts: Counts, truths: Sequence[float], *, rows: int, alike: float) -> None:
    """One run: chosen and ordered on validation, then tested."""
    counts.runs += 1
    validation = Split.draw(rng, truths, rows=rows, alike=alike)
    shares = np.exp(rng.uniform(np.log(0.05), np.log(0.9), len(truths)))
    if len(set(truths)) > 1:  # what loses more costs less
        shares = np.sort(shares)[::-1]
    measured = [validation.measured(i, share) for i, share in enumerate(shares)]
    sequence = choose(SPEC, measured, baseline(), {}).sequence  # where none passes the nearest one alone
    test = Split.draw(rng, truths, rows=rows, alike=alike)
    met = meet(counts, truths, sequence, test)
    counts.alarms += any(split_gap(validation.losses(i), test.losses(i)).real for i in met)


def meet(counts: Counts, truths: Sequence[float], sequence: Sequence[Measurement], test: Split) -> list[int]:
    """The sequence meets a test split, and what came of it is counted; returns the indices of those that were asked."""
    indices = [int(m.digest, 16) for m in sequence]
    asked = {m.digest: test.measured(i, m.latency_share[0]) for i, m in zip(indices, sequence, strict=True)}
    alone = {digest: not failing_gates(SPEC, m, baseline()) for digest, m in asked.items()}
    passed = passed_in_order(sequence, lambda m: alone[m.digest])
    bad = [truths[i] >= MARGIN for i in indices]
    held = [n for n, ok in enumerate(alone.values()) if ok]
    counts.released += passed > 0
    counts.bad += passed > 0 and bad[passed - 1]
    counts.bad_on_front += any(bad[:passed])
    counts.alone_released += len(bad) - 1 in held
    counts.alone_bad += len(bad) - 1 in held and bad[-1]
    counts.all_bad += bool(held) and bad[held[-1]]
    return indices[: passed + 1]


def searches(repeats: int, truths: Sequence[float], *, rows: int, alike: float, seed: int = 0) -> Counts:
    """Runs that choose on validation among candidates of these true losses."""
    rng, counts = np.random.default_rng(seed), Counts()
    for _ in range(repeats):
        search(rng, counts, truths, rows=rows, alike=alike)
    return counts


def sequences(repeats: int, truths: Sequence[float], *, rows: int, alike: float, seed: int = 0) -> Counts:
    """Runs with this very sequence, whatever validation says."""
    rng, counts = np.random.default_rng(seed), Counts()
    order = Split.draw(rng, truths, rows=rows, alike=alike)
    members = [order.measured(i, 0.8 / (i + 1)) for i in range(len(truths))]
    for _ in range(repeats):
        counts.runs += 1
        meet(counts, truths, members, Split.draw(rng, truths, rows=rows, alike=alike))
    return counts


def table(repeats: int, *, rows: int) -> str:
    """Every case as a row of a Markdown table."""
    lines = [
        "| case | candidates answer | runs | released a bad one | a bad one on the front | one tested, as before | "
        "all tested, cheapest that passes | released anything | one tested, as before | said that the splits differ |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    at, ladder = [MARGIN] * 30, [float(x) for x in np.linspace(0.0, 1.2 * MARGIN, 30)]
    for name, truths in (("search: 30 at the margin", at), ("search: 30 from no loss to 1.2 margins", ladder)):
        for alike in (0.0, ALIKE):
            lines.append(_row(name, alike, searches(repeats, truths, rows=rows, alike=alike), sequence=False))
    for parts in ((1, 1, 1, 1), (1, 1.1, 1.25, 1.5), (0.2, 1, 1, 1), (0.2, 0.4, 1, 1.2), (0.2, 0.4, 0.6, 1)):
        for alike in (0.0, ALIKE):
            name = f"sequence: {', '.join(f'{part:g}' for part in parts)} margins"
            counts = sequences(5 * repeats, [part * MARGIN for part in parts], rows=rows, alike=alike)
            lines.append(_row(name, alike, counts, sequence=True))
    return "\n".join(lines)


def _row(name: str, alike: float, counts: Counts, *, sequence: bool) -> str:
    shares = [counts.bad, counts.bad_on_front, counts.alone_bad, counts.all_bad, counts.released, counts.alone_released]
    cells = [counts.share(count) for count in shares] + ["–" if sequence else counts.share(counts.alarms)]
    return f"| {name} | {'alike' if alike else 'independently'} | {counts.runs} | {' | '.join(cells)} |"


def main() -> None:
    """Simulate and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=400, help="searches of each case; five times as many sequences")
    parser.add_argument("--rows", type=int, default=1000, help="samples of validation, and of the test split")
    arguments = parser.parse_args()
    if arguments.repeats < 1 or arguments.rows < 200:
        parser.error("at least 1 repeat and 200 rows are needed: fewer can hardly prove a margin of two points")
    print(table(arguments.repeats, rows=arguments.rows))


if __name__ == "__main__":
    main()
