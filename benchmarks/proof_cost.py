"""What a search cost, and what the same question costs once the answers are stored."""

from __future__ import annotations

from collections.abc import Sequence

from model_registry.variant import Frozen
from tasks.evidence.number_text import seconds_text
from tasks.evidence.search_summary import SearchSummary
from tasks.report.run_report import RunReport


class CandidateCost(Frozen):
    """One line: a structure that was considered. ``trainings``: done, in this run or before."""

    name: str
    what: str
    trainings: int
    seconds: float
    """In the processes of the stages that made, trained, exported and quantized it."""
    state: str
    reason: str


class Cost(Frozen):
    """A whole search. Seconds are of computing, in all runs of it: what the store gave counts as it took then."""

    candidates: tuple[CandidateCost, ...]
    other_seconds: float
    """Of no candidate alone: measuring every file, what allocation needs, the control without a teacher."""
    trainings: int
    """Without the control's."""
    seconds: float
    ended: str


class Run(Frozen):
    """One call of ``winnow run``. ``wall_seconds`` counts the start of its process."""

    what: str
    run_id: str
    status: str
    exit_code: int
    wall_seconds: float
    compute_seconds: float
    computed: tuple[str, ...]
    """Stages that computed in a process of their own; registering and the like compute nothing."""
    reused: int
    resolved_from: str | None
    """The run whose stored search answered."""
    load_before: float
    load_after: float


def cost_of(search: SearchSummary) -> Cost:
    """The cost of a search, candidate by candidate."""
    lines = tuple(
        CandidateCost(
            name=c.name, what=c.what, trainings=len(c.losses), seconds=c.seconds, state=c.state, reason=c.reason
        )
        for c in search.candidates
    )
    return Cost(
        candidates=lines,
        other_seconds=search.seconds - sum(line.seconds for line in lines),
        trainings=search.trials,
        seconds=search.seconds,
        ended=search.ended,
    )


def run_of(what: str, report: RunReport, *, exit_code: int, wall_seconds: float, loads: tuple[float, float]) -> Run:
    """A run that ended, from its report; ``loads``: the load average before and after."""
    computed = [s for s in report.stages if s.status == "computed" and s.compute_seconds > 0]
    return Run(
        what=what,
        run_id=report.run_id,
        status=report.status,
        exit_code=exit_code,
        wall_seconds=wall_seconds,
        compute_seconds=sum(s.compute_seconds for s in computed),
        computed=tuple(s.name for s in computed),
        reused=sum(s.status == "reused" for s in report.stages),
        resolved_from=report.search.resolved_from if report.search else None,
        load_before=loads[0],
        load_after=loads[1],
    )


def cost_table(cost: Cost) -> str:
    """A line per candidate, in Markdown, and the totals."""
    rows = [(c.name, c.what, str(c.trainings), seconds_text(c.seconds), c.state) for c in cost.candidates]
    rows.append(("–", "measuring all files, allocation, control", "", seconds_text(cost.other_seconds), ""))
    rows.append(
        (
            "**all**",
            f"{len(cost.candidates)} candidate{'s' * (len(cost.candidates) != 1)}",
            str(cost.trainings),
            seconds_text(cost.seconds),
            "",
        )
    )
    return _table(("candidate", "what", "trainings", "computing", "state"), rows)


def runs_table(runs: Sequence[Run]) -> str:
    """A line per run, in Markdown: how the cost falls with what is stored."""
    rows = [
        (
            run.what,
            seconds_text(run.wall_seconds),
            seconds_text(run.compute_seconds),
            str(len(run.computed)),
            str(run.reused),
            "stored search" if run.resolved_from else "its stages",
            run.status,
        )
        for run in runs
    ]
    return _table(("run", "wall time", "computing", "stages computed", "reused", "answered by", "status"), rows)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *lines])
