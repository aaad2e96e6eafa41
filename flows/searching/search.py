"""The search: candidates are made, trained in rungs and measured until the cheapest one inside the budget is proven."""

from __future__ import annotations

import contextvars
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from flows.lineage import Made
from flows.searching.assurance import LIKELY, SURE, likely_forms, without_doubtful
from flows.searching.budget_spec import SearchSpec
from flows.searching.candidate import Candidate, loss_of
from flows.searching.candidate_rows import judged, row_of
from flows.searching.foretelling import foretell
from flows.searching.halving import Rules, Standing, enough, hoped, next_move
from flows.searching.search_progress import tell
from flows.searching.search_record import SearchRecord, recall, remember, search_key
from flows.searching.search_setup import SearchSetup
from flows.searching.tally import Tally
from flows.searching.training_plan import JUDGING, mix_is_tried
from flows.searching.workshop import Workshop
from flows.spec import PipelineSpec
from model_registry.measurement import Measurement
from model_registry.store import Store
from model_registry.variant import Variant
from tasks.evidence.search_summary import BestSoFar, CandidateRow, SearchSummary
from tasks.release.ledger_protocol import patiently
from tasks.running.splits import DataRef
from tasks.running.stage import Job, Outcome
from tasks.running.stage_plan import planning
from tasks.validate import GateSpec, refuse_chance


def search(
    job: Job,
    spec: PipelineSpec,
    *,
    data: Outcome,
    checked: DataRef,
    trained: Outcome,
    others: tuple[Variant, ...] = (),
) -> Made:
    """Every variant worth looking at, measured; the cheapest one that keeps the budget is among them if there is any.

    The same spec, data and seed take the same decisions, and every step is looked up before it is computed: a search
    that was killed goes on where it was. Only the time that the steps took when they were computed counts.

    Args:
        trained: the teacher, trained or brought.
        others: more teachers, whose answers are learned with its own.

    Raises:
        GateFailed: the teacher knows nothing.
        StoreUnavailable, Interrupted: as any stage. A candidate that fails ends alone.
    """
    assert spec.search is not None
    setup = SearchSetup.of(job, spec, checked, trained, others)
    tally = Tally.begin(setup)
    plan = planning.get()
    if plan is not None:
        plan.lines += foretell(setup)
        return tally.made(data, checked)
    shop = Workshop(setup, tally)
    refuse_chance(job, checked, shop.appraisal.baseline)
    key = search_key(job, spec, checked, trained.variant)
    store = Store(job.store)
    stored = None if spec.search.fresh else patiently(lambda: recall(store, key))
    if stored is not None and not stored.may_go_on(spec.search):
        made = stored.made(data, checked)
        found = shop.appraisal.cheapest(made.candidates)
        if found is not None:
            text = f"{found.name} keeps the budget: solved from {len(made.measurements)} stored measurements"
            tell(1.0, text)
            return made.with_search(_answered(stored, spec, shop.appraisal.gates, found))

    if stored is not None:
        tally.carry(stored.made(data, checked))
    ended, limited = explore(shop, spec.search)
    control = shop.trainer.prove_teaching(_winner(shop))
    made = tally.made(data, checked)
    best = shop.appraisal.cheapest(made.candidates)
    summary = SearchSummary(
        objective=spec.objective,
        budget=spec.budget.model_dump(mode="json") if spec.budget else {},
        candidates=_rows(shop, stored),
        best=best.digest if best else None,
        trials=tally.trials,
        seconds=tally.seconds,
        ended=ended,
        limited=limited or (tally.trials > 0 and not setup.says("epochs")),
        sensitivity=shop.maker.ladders.sensitivity,
        control=control,
        planning_seconds=tally.planning_seconds,
        mixes=tally.mixes,
        by_heart=shop.plan.by_heart and any((c.views or 0) > 1 for c in tally.candidates),
        untried=tuple(tally.untried),
        curve=tuple(tally.curve),
    )
    made = made.with_search(summary)
    record = SearchRecord.of(key, job, made, summary, spec.search)
    patiently(lambda: remember(store, record))
    return made


def _rows(shop: Workshop, earlier: SearchRecord | None) -> tuple[CandidateRow, ...]:
    """The candidates as the search left them, and those of an earlier search that may still be the best."""
    gates = shop.appraisal.gates
    rows = [row_of(c, gates, shop.appraisal.baseline) for c in shop.tally.candidates]
    known = {form.digest for row in rows for form in row.forms}
    for row in earlier.summary.candidates if earlier else ():
        row = judged(row.model_copy(update={"name": f"earlier-{row.name.removeprefix('earlier-')}"}), gates)
        if row.losses and any(not f.fails and f.digest not in known for f in row.forms):
            rows.append(row)
    return tuple(rows)


def _answered(stored: SearchRecord, spec: PipelineSpec, gates: GateSpec, found: Measurement) -> SearchSummary:
    """The stored search under this budget and objective."""
    return stored.summary.model_copy(
        update={
            "budget": spec.budget.model_dump(mode="json") if spec.budget else {},
            "objective": spec.objective,
            "candidates": tuple(judged(row, gates) for row in stored.summary.candidates),
            "best": found.digest,
            "resolved_from": stored.run_id,
            "ended": f"{len(stored.measured)} stored measurements hold the answer; nothing was trained",
        }
    )


def explore(shop: Workshop, settings: SearchSpec) -> tuple[str, bool]:
    """Make and train candidates until the search is over; why it is, and whether a limit ended it."""
    tally, limit = shop.tally, settings.minutes * 60
    shop.maker.line_up(lambda: _report(shop))
    tally.planning_seconds = tally.seconds
    start = shop.maker.start()
    while True:
        shop.plan.left = limit - tally.seconds
        best = shop.appraisal.cheapest(tally.forms())
        if tally.trials >= settings.trials:
            return f"all {settings.trials} trainings that search.trials allows were made", True
        moves = _moves(shop, start, limit - tally.seconds)
        if not moves:
            late = _moves(shop, start, float("inf"))
            if late:
                return f"search.minutes ({settings.minutes:g}) leaves no time to train {late[0].name} further", True
            if best is None:
                return "no candidate is left to train", False
            said = shop.setup.says("epochs") or _is_sure(shop, best)
            safer = "" if said else ", and nothing dearer is left to try that is likelier to pass"
            return f"nothing cheaper than the best one may reach the margin{safer}", False
        if not all(c.made for c in moves):  # only now is known what they cost, and so whether they are worth it
            shop.maker.make(moves)
            continue
        looks, before = all(c.rung == 0 for c in moves), tally.seconds
        _train(shop, moves)
        if looks:
            shop.plan.looks_left -= tally.seconds - before
        _report(shop)


def _train(shop: Workshop, moves: list[Candidate]) -> None:
    """Train the candidates a rung further; the first training of all decides how the others are made."""
    maker, plan, trainer = shop.maker, shop.plan, shop.trainer
    plan.decide_epochs(moves[0])
    first = next((c for c in moves if c.rung < shop.setup.rungs_of(c)), None)
    if first is not None and not plan.mixed:
        mixes = plan.mixes(maker.ladders.answer_seconds, maker.ladders.augments)
        left = shop.setup.settings.trials - shop.tally.trials
        trainer.advance(first, mixes if len(mixes) <= left else ({},))
        plan.mixed = not first.failure
    elif first is not None and (pupil := _better_teacher(shop, first)) is not None and pupil.model is not None:
        plan.passed_on = True
        answer_seconds = JUDGING * pupil.row_seconds
        _, *taught = plan.mixes(answer_seconds, maker.ladders.augments)
        trainer.advance(first, taught[:1] or ({},), pupil.model if taught else None)
    else:
        _side_by_side([lambda c=c: trainer.advance(c) for c in moves])  # type: ignore[misc]
    trainer.note_hearts([c for c in moves if not c.failure])
    maker.set_aside()


def _better_teacher(shop: Workshop, candidate: Candidate) -> Candidate | None:
    """Of the candidates that do better than a teacher who holds its pupils back, the best; None where there is none, it
    was tried already, or more than this candidate's first training would have to tell what it is worth."""
    plan, tally, settings = shop.plan, shop.tally, shop.setup.settings
    asked = plan.passed_on or plan.distilling.alpha != 0 or not mix_is_tried(shop.setup)
    if asked or candidate.rung or settings.parallel > 1 or tally.trials + 2 > settings.trials:
        return None
    trained = [c for c in tally.candidates if c is not candidate and c.rung]
    standings = [(shop.appraisal.standing(c), c) for c in trained]
    better = [c for s, c in standings if s.loss is not None and s.loss + s.spread < 0]  # by more than chance explains
    return min(better, key=lambda c: c.losses[-1], default=None)


def _moves(shop: Workshop, start: float, seconds_left: float) -> list[Candidate]:
    """The candidates to train next, as many as may train at a time."""
    settings, appraisal, chosen = shop.setup.settings, shop.appraisal, list[Candidate]()
    rules = appraisal.rules(shop.tally.candidates, start)
    for candidate in shop.tally.candidates:
        standing = appraisal.standing(candidate)
        candidate.enough, candidate.hoped = enough(standing, rules), hoped(standing, rules)
    while len(chosen) < min(settings.parallel, settings.trials - shop.tally.trials):
        standings = [
            replace(appraisal.standing(c), possible=False) if c in chosen else appraisal.standing(c)
            for c in shop.tally.candidates
        ]
        # A spec that says the epochs has chosen how long it wants to train.
        chances = (0.0,) if shop.setup.says("epochs") else (LIKELY, SURE)
        names = (_next_move(shop, standings, rules, chance, seconds_left) for chance in chances)
        name = next((name for name in names if name is not None), None)
        if name is None:
            break
        chosen.append(next(c for c in shop.tally.candidates if c.name == name))
    return chosen


def _next_move(
    shop: Workshop, standings: list[Standing], rules: Rules, chance: float, seconds_left: float
) -> str | None:
    """What may become cheaper than the best of those that pass on the test split with this chance at least."""
    appraisal, data = shop.appraisal, shop.setup.data
    passing = [form for form in shop.tally.forms() if appraisal.passes(form)]
    proven = [appraisal.cost(form) for form in likely_forms(passing, chance, margin=rules.margin, data=data)]
    if passing and chance:
        proven.append(appraisal.cost(appraisal.baseline))  # what is served anyway is not lost
    incumbent = min(proven, default=None)
    if chance:
        standings = without_doubtful(standings, rules, math.inf if incumbent is None else incumbent)
    return next_move(standings, rules, incumbent=incumbent, seconds_left=seconds_left)


def _is_sure(shop: Workshop, form: Measurement) -> bool:
    return bool(likely_forms([form], SURE, margin=shop.appraisal.gates.margin, data=shop.setup.data))


def _side_by_side(moves: list[Callable[[], None]]) -> None:
    if len(moves) == 1:
        moves[0]()
        return
    with ThreadPoolExecutor(max_workers=len(moves)) as pool:  # Prefect's run is in the context
        for future in [pool.submit(contextvars.copy_context().run, move) for move in moves]:
            future.result()


def _winner(shop: Workshop) -> Candidate | None:
    best = shop.appraisal.cheapest(shop.tally.forms())
    candidates = shop.tally.candidates
    return next((c for c in candidates if best and best.digest in {m.digest for m in (*c.forms, *c.earlier)}), None)


def _report(shop: Workshop) -> None:
    tally, appraisal = shop.tally, shop.appraisal
    best, last = appraisal.cheapest(tally.forms()), tally.latest
    if best is not None and (not tally.curve or tally.curve[-1].digest != best.digest):
        tally.curve.append(
            BestSoFar(
                seconds=tally.seconds,
                name=best.name,
                digest=best.digest,
                cost=appraisal.cost(best),
                bytes=best.bytes,
                speedup=best.speedup.value if best.speedup else None,
                loss=loss_of(best),
            )
        )
    text = "" if last is None else f"{last.name}: {appraisal.line(last)}; "
    text += f"best {best.name}, {appraisal.line_of(best)}" if best else "nothing keeps the budget yet"
    done = min(1.0, tally.seconds / (60 * shop.setup.settings.minutes))
    tell(min(0.99, done), f"{text} ({tally.trials} trainings, {tally.seconds / 60:.1f} min)")
