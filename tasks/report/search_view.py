"""A search as the report shows it: what became of the budget in a sentence, and the candidates as rows of a table."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from model_registry.sizes import KB, size_text
from tasks.evidence.number_text import count_text, difference_text, is_share, metric_text, ms_text, seconds_text
from tasks.evidence.search_summary import TRAINED_ON, CandidateForm, CandidateRow, MixTried, SearchSummary
from tasks.report.budget_limits import BudgetLimits, limits_of
from tasks.report.run_report import RunReport

_TONES = {"keeps the budget": "good", "failed": "bad", "loses too much": "bad", "over the budget": "bad"}
_WIDTH, _HEIGHT = 72, 26
_BY_HEART = (
    "Candidates answered rows that they had learned from much better than others, so long trainings saw changed ones "
    "as well: images moved by a pixel or so, of other data mixtures of two rows."
)


@dataclass(frozen=True)
class FormLine:
    """A file of a candidate, in words. ``trained`` false: its loss says nothing yet."""

    form: CandidateForm
    loss: str
    bound: str
    fails: str
    trained: bool
    best: bool
    chosen: bool


@dataclass(frozen=True)
class CandidateLine:
    """A candidate, in words. ``spark`` is an SVG path through its losses to ``end``; ``margin``: how high it lies."""

    row: CandidateRow
    tone: str
    cost: str
    losses: str
    spark: str
    end: tuple[float, float]
    margin: float | None
    forms: tuple[FormLine, ...]


def search_verdict(report: RunReport) -> str:
    """Whether the budget was kept, by what; or why not, and what came nearest."""
    search = report.search
    if search is None:
        return ""
    metric = report.metric.name if report.metric else "the metric"
    limits = limits_of(report)
    asked = limits.text(metric)
    asked = f" ({asked})" if asked else ""
    if search.best is not None:
        best = report.row(search.best) or _form(search, search.best)
        return f"{best.name if best else search.best[:12]} keeps the budget{asked} on validation."
    counts = Counter(c.state for c in search.candidates)
    tried = ", ".join(f"{number} {_phrase(state, number)}" for state, number in counts.most_common())
    total = len(search.candidates)
    text = f"The budget{asked} cannot be met: of {total} candidate{'s' * (total != 1)} {tried or 'none was made'}."
    near = nearest(report)
    if not near:
        return text
    form = near[0][1]
    misses = limits.exceeded(form, metric) or [f"it would fail {', '.join(g.replace('_', ' ') for g in form.fails)}"]
    return f"{text} Nearest is {form.name}: {'; '.join(misses)}."


def ending(search: SearchSummary) -> str:
    """How the search went, in a sentence or two."""
    if search.resolved_from:
        return f"Stored measurements of run {search.resolved_from} answered; nothing was trained."
    trainings = f"{search.trials} training{'s' * (search.trials != 1)}"
    end = search.ended[:1].upper() + search.ended[1:]
    planning = f" ({seconds_text(search.planning_seconds)} before the first training)" * bool(search.planning_seconds)
    time = f"{seconds_text(search.seconds)} of computing{planning}"
    return f"{len(search.candidates)} candidates, {trainings}, {time}. {end}."


def mix_sentence(report: RunReport) -> str:
    """What first trainings showed of labels and the teacher's answers, where the spec did not say the mix; and whether
    rows were changed."""
    search = report.search
    if search is None:
        return ""
    by_heart = _BY_HEART if search.by_heart else ""
    if len(search.mixes) < 2:
        return by_heart
    name = report.metric.name if report.metric else ""
    by_candidate: dict[str, list[MixTried]] = {}
    for mix in search.mixes:
        by_candidate.setdefault(mix.candidate, []).append(mix)
    said = [
        _other_teacher(mixes, name)
        if any(mix.teacher not in ("", TRAINED_ON) for mix in mixes)
        else _first_mixes(mixes, name)
        for mixes in by_candidate.values()
        if len(mixes) > 1
    ]
    return " ".join([*said, *([by_heart] if by_heart else [])])


def _other_teacher(mixes: list[MixTried], name: str) -> str:
    """Whether a candidate that does better than the teacher taught the others from then on."""
    pupil = next((mix.teacher for mix in mixes if mix.alpha), "")
    tried = ", ".join(
        f"{'labels alone' if mix.alpha == 0 else f'its answers at {mix.alpha:.0%}'} {metric_text(mix.metric, name)}"
        for mix in mixes
    )
    chosen = next((mix for mix in mixes if mix.chosen), mixes[0])
    which = f"{pupil} too" if chosen.alpha else "labels alone as before"
    return (
        f"{pupil} does better than the teacher, so it was tried in its place: the first training of "
        f"{chosen.candidate} gave {tried}; later ones learned from {which}."
    )


def _first_mixes(mixes: list[MixTried], name: str) -> str:
    usual = mixes[0]

    def steps(mix: MixTried) -> str:
        if mix.optimizer != usual.optimizer:
            return f" by {mix.optimizer.upper()}"
        return f" with a learning rate of {mix.learning_rate:.2g}" if mix.learning_rate != usual.learning_rate else ""

    def described(mix: MixTried) -> str:
        whose = "those of the teacher after more training" if mix.teacher else "the teacher's answers"
        said = "labels alone" if mix.alpha == 0 else f"{whose} at {mix.alpha:.0%}"
        return f"{said}{steps(mix)} {metric_text(mix.metric, name)}"

    chosen = next((m for m in mixes if m.chosen), mixes[0])
    more = " after more training" if chosen.teacher else ""
    which = "labels alone" if chosen.alpha == 0 else f"the teacher's answers{more} with a share of {chosen.alpha:.0%}"
    end = " This teacher holds its pupils back." if chosen.alpha == 0 else ""
    tried = ", ".join(described(mix) for mix in mixes)
    return (
        f"The first training of {chosen.candidate} gave on validation: {tried}; all others learned from "
        f"{which}{steps(chosen)}.{end}"
    )


def control_sentence(report: RunReport) -> str:
    """What the teacher gained; '' where that was not measured."""
    control = report.search.control if report.search else {}
    if not {"gain", "low", "high", "p"} <= control.keys():
        return ""
    name = report.metric.name if report.metric else ""
    low, high = (difference_text(control[end], name) for end in ("low", "high"))
    sure = control["p"] < 0.05
    end = "." if sure else ", which is within the noise."
    if sure and control["gain"] < 0:
        end = ": this teacher holds it back. Give the targets more weight than its answers (distill.alpha)."
    return (
        f"Learning from the teacher changed the best structure's {name or 'metric'} on validation by "
        f"{difference_text(control['gain'], name)} against the same one trained without it (95 % interval {low} to "
        f"{high}, p {control['p']:.2g}){end}"
    )


def nearest(report: RunReport) -> list[tuple[CandidateRow, CandidateForm]]:
    """Each candidate with its file that exceeds the budget least, the nearest candidate first; untrained ones last."""
    if report.search is None:
        return []
    limits = limits_of(report)
    found = []
    for row in report.search.candidates:
        forms = [f for f in row.forms if f.digest != report.baseline]
        if forms:
            best = min(forms, key=lambda f: (limits.excess(f, trained=_trained(row)), len(f.fails)))
            found.append((row, best))

    def order(pair: tuple[CandidateRow, CandidateForm]) -> tuple[bool, float, str]:
        row, form = pair
        return not _trained(row), limits.excess(form, trained=_trained(row)), row.name

    return sorted(found, key=order)


def candidate_lines(report: RunReport) -> list[CandidateLine]:
    """The rows of the table, the cheapest first; those that were never measured last."""
    search = report.search
    if search is None:
        return []
    name, limits = report.metric.name if report.metric else "", limits_of(report)
    scale = _spark_scale([loss for c in search.candidates for loss in c.losses], limits)
    return [
        CandidateLine(
            row=row,
            tone=_TONES.get(row.state, "warn"),
            cost=cost_text(row.cost, search.objective) if row.cost else "–",
            losses=" → ".join(_loss(loss, name) for loss in row.losses),
            spark="M" + "L".join(f"{x},{y}" for x, y in corners) if corners else "",
            end=corners[-1] if corners else (0.0, 0.0),
            margin=_height(limits.margin, scale) if limits.margin is not None else None,
            forms=tuple(_form_line(f, row, report, name) for f in row.forms),
        )
        for row in sorted(search.candidates, key=lambda c: (not c.cost, c.cost, c.name))
        for corners in [_corners(row.losses, scale)]
    ]


def cost_text(cost: float, objective: str) -> str:
    """What the objective counts: ``0.213 ms``, ``38.2 kB``, seconds per sample as ``4.20 k per s``, or the geometric
    mean of latency and size, ``2.85 √(ms·kB)``."""
    if objective == "size":
        return size_text(cost)
    if objective in ("both", "front"):
        return f"{cost / math.sqrt(KB):.3g} √(ms·kB)"
    return f"{ms_text(cost)} ms" if objective == "latency" else f"{count_text(1 / cost)} per s"


def _form_line(form: CandidateForm, row: CandidateRow, report: RunReport, metric: str) -> FormLine:
    search, trained = report.search, _trained(row)
    baseline = form.digest == report.baseline
    judged = trained and not baseline and form.loss is not None and form.bound is not None
    return FormLine(
        form=form,
        loss=_loss(form.loss or 0.0, metric) if judged else "–",
        bound=_loss(form.bound or 0.0, metric, digits=2) if judged else "baseline" if baseline else "untrained",
        fails=", ".join(gate.replace("_", " ") for gate in form.fails) if trained else "",
        trained=trained,
        best=search is not None and form.digest == search.best,
        chosen=form.digest == report.chosen,
    )


def _trained(row: CandidateRow) -> bool:
    return bool(row.losses) or row.kind == "teacher"


def _form(search: SearchSummary, digest: str | None) -> CandidateForm | None:
    return next((f for c in search.candidates for f in c.forms if f.digest == digest), None)


def _phrase(state: str, number: int) -> str:
    one = number == 1
    return {
        "keeps the budget": "keeps it" if one else "keep it",
        "loses too much": "loses too much" if one else "lose too much",
        "over the budget": f"{'is' if one else 'are'} over it by {'its' if one else 'their'} structure",
        "failed": "failed",
        "given up": f"{'was' if one else 'were'} given up",
        "not reached": f"{'was' if one else 'were'} not reached",
    }[state]


def _loss(loss: float, metric: str, *, digits: int = 1) -> str:
    """In points for shares, without the word; never ``-0.0``."""
    text = f"{100 * loss:.{digits}f}" if is_share(metric) else f"{loss:.3g}"
    return text.replace("-", "−") if float(text) else text.removeprefix("-")


def _spark_scale(losses: list[float], limits: BudgetLimits) -> tuple[float, float]:
    """Lowest and highest loss drawn: all on one scale, hopeless ones at its top."""
    values = [*losses, 0.0, *([4 * limits.margin] if limits.margin else [])]
    top = min(max(values), 10 * limits.margin) if limits.margin else max(values)
    return min(values), top if top > min(values) else min(values) + 1.0


def _height(loss: float, scale: tuple[float, float]) -> float:
    """A square root: what is near the margin is what matters."""
    share = (min(max(loss, scale[0]), scale[1]) - scale[0]) / (scale[1] - scale[0])
    return round(_HEIGHT - 3 - math.sqrt(share) * (_HEIGHT - 6), 1)


def _corners(losses: tuple[float, ...], scale: tuple[float, float]) -> list[tuple[float, float]]:
    """From the first training to the last, in a box of 72 x 26 pixels."""
    step = (_WIDTH - 10) / max(1, len(losses) - 1)
    return [(round(5 + i * step, 1), _height(loss, scale)) for i, loss in enumerate(losses)]
