"""What a search will do and cost, before it begins: lines of ``winnow run --plan``."""

from __future__ import annotations

from flows.searching.ladder_planner import planning_seconds
from flows.searching.search_setup import SearchSetup
from flows.searching.training_plan import MOST_EPOCHS, MOST_SHARE, mix_is_tried
from tasks.evidence.number_text import seconds_text
from tasks.running.stage_plan import PlanLine

_BEST = {
    "both": "best at latency and size together",
    "latency": "lowest latency",
    "size": "smallest file",
    "throughput": "highest throughput",
}
_FRONT = "every one that no other beats at accuracy, latency and size, and"


def foretell(setup: SearchSetup) -> list[PlanLine]:
    """Teacher's files, planning, trainings: what is tried, and how long it may take."""
    settings, spec = setup.settings, setup.spec
    lines = [
        ("search:teacher", f"the teacher as it is, by {', '.join(setup.quantizing.methods)}: no training"),
    ]
    if setup.teacher.format == "torch":
        parts = []
        if settings.shrink is None:
            parts.append("narrower ones down to where layers cannot get narrower")
        elif settings.shrink:
            parts.append(f"narrower ones at {', '.join(f'{share:.0%}' for share in settings.shrink)} of the cost")
        if settings.students is None:
            parts.append("half the resolution and a third of the blocks where the layers allow it")
        elif settings.students:
            parts.append(f"{len(settings.students)} students")
        time = f"; about {seconds_text(planning_seconds(setup))}" if planning_seconds(setup) else ""
        lines.append(("search:planning", (", ".join(parts) or "nothing besides the teacher") + time))
        epochs = (
            f"{setup.distilling.epochs} epochs"
            if setup.says("epochs")
            else f"the first one short, the last one at most {MOST_EPOCHS} epochs and {MOST_SHARE:.0%} of what is left"
        )
        mix = "; the first one tells how much labels and teacher count" if mix_is_tried(setup) else ""
        limits = f"at most {settings.trials} trainings in {settings.minutes:g} min"
        lines.append(("search:training", f"{limits}; {settings.rungs} for a candidate, {epochs}{mix}"))
    wanted = _FRONT if spec.objective == "front" else f"the {_BEST[spec.objective]}"
    lines.append(("search:choice", f"{wanted} that loses at most {spec.gates.margin_text()}"))
    return [PlanLine(name=name, action="computed", reason=reason) for name, reason in lines]
