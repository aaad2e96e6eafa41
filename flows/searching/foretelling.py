"""What a search will do and cost, before it begins: lines of ``winnow run --plan``."""

from __future__ import annotations

from flows.searching.ladder_planner import planning_seconds
from flows.searching.search_setup import SearchSetup
from flows.searching.training_plan import MOST_EPOCHS, SHARE
from tasks.evidence.number_text import seconds_text
from tasks.running.stage_plan import PlanLine

_BEST = {"latency": "lowest latency", "size": "smallest file", "throughput": "highest throughput"}


def foretell(setup: SearchSetup) -> list[PlanLine]:
    """Teacher's files, planning, trainings: what is tried, and how long it may take."""
    settings, spec = setup.settings, setup.spec
    lines = [
        ("search:teacher", f"the teacher as it is, by {', '.join(setup.quantizing.methods)}: no training"),
    ]
    if setup.teacher.format == "torch":
        shares = settings.shrink
        ladder = (
            "narrower ones down to where layers cannot get narrower"
            if shares is None
            else f"narrower ones at {', '.join(f'{share:.0%}' for share in shares) or 'no'} of the cost"
        )
        students = f", {len(settings.students)} students" if settings.students else ""
        if settings.students is None:
            students = ", also at half the resolution and with a third of the blocks"
        time = seconds_text(planning_seconds(setup))
        lines.append(("search:planning", f"{ladder}{students}, from damage and layer times; about {time}"))
        epochs = (
            f"{setup.distilling.epochs} epochs"
            if setup.says("epochs")
            else f"the first one short, the last one at most {MOST_EPOCHS} epochs and {SHARE:.0%} of what is left"
        )
        mix = "" if setup.says("alpha") else "; the first one tells how much labels and teacher count"
        limits = f"at most {settings.trials} trainings in {settings.minutes:g} min"
        lines.append(("search:training", f"{limits}; {settings.rungs} for a candidate, {epochs}{mix}"))
    lines.append(("search:choice", f"the {_BEST[spec.objective]} that loses at most {spec.gates.margin:g}"))
    return [PlanLine(name=name, action="computed", reason=reason) for name, reason in lines]
