"""The rows of the compression proof: which spec makes each, what it is to reach, and what it reached."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from benchmarks.proof_result import SIGNIFICANT, Result, speedup_text
from model_registry.variant import Frozen
from tasks.evidence.number_text import points, share_of_baseline

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Row:
    """One row. A goal that is None is not set.

    ``drop`` limits the loss itself, ``margin`` its one-sided 95 % bound, both in the metric's unit; ``relative_drop``
    the loss as a share of the baseline's metric; ``spec`` is a path, or the name of a spec that ships with Winnow.
    """

    name: str
    spec: str
    teacher: str | None = None
    """The network whose teacher is trained first where it is missing."""
    batch: int | None = None
    threads: int = 1
    smaller: float | None = None
    faster: float | None = None
    drop: float | None = None
    relative_drop: float | None = None
    margin: float | None = None
    budget_only: Row | None = None
    """The same question with nothing in its spec but a budget and the minutes: ``--zero-knob``."""


def _glyphs(network: str, *, smaller: float, faster: float, budget_only: tuple[float, float]) -> Row:
    spec = str(HERE / "glyphs" / f"{network}.yaml")
    row = Row(network, spec, teacher=network, batch=1, smaller=smaller, faster=faster, drop=0.005)
    spec = str(HERE / "glyphs" / f"{network}_budget.yaml")
    return replace(row, budget_only=replace(row, spec=spec, smaller=budget_only[0], faster=budget_only[1]))


def _network(name: str, *, smaller: float, faster: float, drop: float | None) -> Row:
    """A row of ``networks/``: its spec says nothing but a budget and the minutes, and trains the teacher itself."""
    spec = str(HERE / "networks" / f"{name}_budget.yaml")
    return Row(name, spec, batch=1, smaller=smaller, faster=faster, drop=drop)


ROWS = {
    "digits": Row(
        "digits",
        "digits_budget",
        batch=16,
        smaller=25.0,
        faster=6.0,
        margin=0.02,
        budget_only=Row(
            "digits",
            str(HERE / "glyphs" / "digits_budget_only.yaml"),
            batch=16,
            smaller=25.0,
            faster=6.0,
            margin=0.02,
        ),
    ),
    "vgg": _glyphs("vgg", smaller=20.0, faster=12.0, budget_only=(20.0, 12.0)),
    "resnet20": _glyphs("resnet20", smaller=12.0, faster=6.0, budget_only=(12.0, 6.0)),
    "mobilenet": _glyphs("mobilenet", smaller=3.5, faster=1.5, budget_only=(6.0, 3.0)),
    "grey": Row("grey", str(HERE / "glyphs" / "grey_budget.yaml"), batch=1, smaller=40.0, faster=13.0, drop=0.01),
    "unet": _network("unet", smaller=10.0, faster=6.0, drop=0.01),
    "two_inputs": replace(_network("two_inputs", smaller=8.0, faster=5.0, drop=None), relative_drop=0.01),
    "convnext": _network("convnext", smaller=8.0, faster=5.0, drop=0.005),
    "vit": _network("vit", smaller=8.0, faster=5.0, drop=0.01),
    "tcn": _network("tcn", smaller=6.0, faster=4.0, drop=0.01),
    "wide_table": _network("wide_table", smaller=20.0, faster=10.0, drop=0.005),
}


class Goal(Frozen):
    """A number, and what it is to be. ``found`` None: there is no such number; ``text`` says why."""

    name: str
    limit: float
    found: float | None
    text: str
    """What was found, in words."""
    unit: Literal["×", "loss", "p", "gates"]
    metric: str
    at_most: bool = False
    worst: float | None = None
    """The unfavourable end of its 95 % interval."""

    @property
    def reached(self) -> bool:
        return self.found is not None and self.missing <= 0

    @property
    def missing(self) -> float:
        """By how much it was missed, in its unit; at most 0 where it was reached."""
        return self._short(self.found) if self.found is not None else float("inf")

    @property
    def sure(self) -> bool:
        """Whether the unfavourable end of the interval, where it has one, reaches the goal too."""
        return self.reached and (self.worst is None or self._short(self.worst) <= 0)

    def wanted(self) -> str:
        return f"{'at most' if self.at_most else 'at least'} {self._number(self.limit)}"

    def outcome(self) -> str:
        """``reached``, or by how much it was not."""
        if self.reached:
            return "reached" if self.sure else "reached, but not by its whole 95 % interval"
        if self.found is None or self.unit == "gates":
            return "missed"
        share = f", {self.missing / self.limit:.0%} of it" if self.unit in ("×", "loss") else ""
        return f"missed by {self._number(self.missing)}{share}"

    def _short(self, value: float) -> float:
        return value - self.limit if self.at_most else self.limit - value

    def _number(self, value: float) -> str:
        if self.unit == "loss":
            return points(value, self.metric)
        return f"{value:.3g}{'×' if self.unit == '×' else ''}"


def judge(row: Row, result: Result) -> list[Goal]:
    """Every goal of the row, and that no gate refused."""
    goals = []
    if row.smaller is not None:
        goals.append(_smaller(row.smaller, result))
    if row.faster is not None:
        goals.append(_faster(row, row.faster, result))
    if row.drop is not None:
        goals.append(_loss("loss on the test split", row.drop, result, bound=False))
    if row.relative_drop is not None and result.baseline.metric is not None:
        name = f"loss on the test split, {share_of_baseline(row.relative_drop)}"
        goals.append(_loss(name, row.relative_drop * abs(result.baseline.metric), result, bound=False))
    if row.margin is not None:
        goals.append(_loss("95 % bound of the loss on the test split", row.margin, result, bound=True))
        goals.append(_insignificant(result))
    failed = result.failed_gates
    text = f"refused: {', '.join(failed).replace('_', ' ')}" if failed else result.status
    goals.append(
        Goal(name="gates that refuse it", limit=0, found=len(failed), text=text, unit="gates", metric="", at_most=True)
    )
    return goals


def goals_table(goals: list[Goal]) -> str:
    """A line per goal, in Markdown."""
    lines = [f"| {goal.name} | {goal.wanted()} | {goal.text} | {goal.outcome()} |" for goal in goals]
    return "\n".join(["| goal | wanted | found | |", "|---|---|---|---|", *lines])


def count_text(goals: list[Goal]) -> str:
    """``3 of 4 reached``."""
    return f"{sum(goal.reached for goal in goals)} of {len(goals)} reached"


def _smaller(limit: float, result: Result) -> Goal:
    text = "nothing was chosen" if result.smaller is None else f"{result.smaller:.1f}×"
    return Goal(name="times smaller", limit=limit, found=result.smaller, text=text, unit="×", metric="")


def _faster(row: Row, limit: float, result: Result) -> Goal:
    """A speed-up under other conditions than the row's is no answer."""
    wanted, found = (row.batch or result.batch, row.threads), (result.batch, result.threads)
    name = f"times faster, {_conditions(*wanted)}"
    goal = Goal(name=name, limit=limit, found=None, text="nothing was chosen", unit="×", metric="")
    if result.speedup is None:
        return goal
    if wanted != found:
        return goal.model_copy(update={"text": f"measured with {_conditions(*found)}"})
    update = {"found": result.speedup.value, "worst": result.speedup.interval[0], "text": speedup_text(result.speedup)}
    return goal.model_copy(update=update)


def _loss(name: str, limit: float, result: Result, *, bound: bool) -> Goal:
    loss, metric = result.loss, result.metric
    goal = Goal(name=name, limit=limit, found=None, text="not measured", unit="loss", metric=metric, at_most=True)
    if loss is None:
        return goal
    if bound:
        return goal.model_copy(update={"found": loss.bound, "text": points(loss.bound, metric)})
    text = f"{points(loss.value, metric)} (95 % bound {points(loss.bound, metric)})"
    return goal.model_copy(update={"found": loss.value, "worst": loss.bound, "text": text})


def _insignificant(result: Result) -> Goal:
    """The p value of a loss; that of a gain counts as 1."""
    loss = result.loss
    goal = Goal(
        name="paired p of the loss", limit=SIGNIFICANT, found=None, text="not measured", unit="p", metric=result.metric
    )
    if loss is None:
        return goal
    text = f"{loss.p:.2g}, {loss.better} better and {loss.worse} worse of {loss.samples:,}"
    return goal.model_copy(update={"found": loss.p if loss.value > 0 else 1.0, "text": text})


def _conditions(batch: int, threads: int) -> str:
    return f"batch {batch}, {threads} thread{'s' * (threads != 1)}"
