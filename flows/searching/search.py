"""The search: candidates are made, trained in rungs and measured until the cheapest one inside the budget is proven."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from flows.lineage import Made
from flows.searching.budget_spec import SearchSpec
from flows.searching.candidate import Candidate
from flows.searching.candidate_rows import judged, row_of
from flows.searching.candidates import Workshop
from flows.searching.halving import next_move
from flows.searching.search_progress import tell
from flows.searching.search_record import SearchRecord, recall, remember, search_key
from flows.spec import PipelineSpec
from model_registry.measurement import Measurement
from model_registry.store import Store
from model_registry.variant import Variant
from tasks.allocate import AllocateSpec, allocate
from tasks.evidence.search_summary import SearchSummary
from tasks.release.ledger_protocol import patiently
from tasks.running.splits import DataRef
from tasks.running.stage import Job, Outcome
from tasks.running.stage_plan import planning
from tasks.validate.choice import best_of, failing_gates


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
        StoreUnavailable, Interrupted: as any stage. A candidate that fails ends alone.
    """
    assert spec.search is not None
    shop = Workshop(job, spec, checked, trained, others)
    shop.prepare()
    if planning.get() is not None:
        return shop.made(data)
    key = search_key(job, spec, checked, trained.variant)
    store = Store(job.store)
    stored = None if spec.search.fresh else patiently(lambda: recall(store, key))
    if stored is not None and not stored.may_go_on(spec.search):
        made = stored.made(data, checked)
        found = _cheapest(shop, made.candidates)
        if found is not None:
            text = f"{found.name} keeps the budget: solved from {len(made.measurements)} stored measurements"
            tell(1.0, text)
            return made.with_search(_answered(stored, spec, found))

    ended, limited = _explore(shop, spec.search)
    shop.prove_teaching(_winner(shop))
    made = shop.made(data)
    best = _cheapest(shop, made.candidates)
    summary = SearchSummary(
        objective=spec.objective,
        budget=spec.budget.model_dump(mode="json") if spec.budget else {},
        candidates=tuple(row_of(c, spec.gates, shop.baseline_measurement) for c in shop.candidates),
        best=best.digest if best else None,
        trials=shop.trials,
        seconds=shop.seconds,
        ended=ended,
        limited=limited,
        sensitivity=shop.sensitivity,
        control=shop.control,
    )
    made = made.with_search(summary)
    record = SearchRecord.of(key, job, made, summary, spec.search)
    patiently(lambda: remember(store, record))
    return made


def _answered(stored: SearchRecord, spec: PipelineSpec, found: Measurement) -> SearchSummary:
    """The stored search under this budget and objective."""
    return stored.summary.model_copy(
        update={
            "budget": spec.budget.model_dump(mode="json") if spec.budget else {},
            "objective": spec.objective,
            "candidates": tuple(judged(row, spec.gates) for row in stored.summary.candidates),
            "best": found.digest,
            "resolved_from": stored.run_id,
            "ended": f"{len(stored.measured)} stored measurements hold the answer; nothing was trained",
        }
    )


def _explore(shop: Workshop, settings: SearchSpec) -> tuple[str, bool]:
    """Make and train candidates until the search is over; why it is, and whether a limit ended it."""
    _line_up(shop, settings)
    limit = settings.minutes * 60
    while True:
        best = _cheapest(shop, shop.forms())
        if shop.trials >= settings.trials:
            return f"all {settings.trials} trainings that search.trials allows were made", True
        moves = _moves(shop, best, settings, limit - shop.seconds)
        if not moves:
            late = _moves(shop, best, settings, float("inf"))
            if late:
                return f"search.minutes ({settings.minutes:g}) leaves no time to train {late[0].name} further", True
            why = "nothing cheaper than the best one may reach the margin" if best else "no candidate is left to train"
            return why, False
        shop.ask_teachers()
        _side_by_side([lambda c=c: shop.advance(c) for c in moves])  # type: ignore[misc]
        _report(shop)


def _line_up(shop: Workshop, settings: SearchSpec) -> None:
    """Make every candidate and measure it untrained; a line for each."""
    shop.add_teacher()
    _report(shop)
    if shop.teacher.format != "torch":
        return
    for target in _ladder(shop, settings):
        shop.add_pruned(target)
        _report(shop)
    for number, scale in enumerate(settings.students):
        student = shop.add_student(f"student{number + 1}", dict(scale))
        _report(shop)
        for target in _ladder(shop, settings, student) if student else ():
            shop.add_pruned(target, student)
            _report(shop)
    shop.set_aside()


def _ladder(shop: Workshop, settings: SearchSpec, base: Candidate | None = None) -> list[dict[str, object]]:
    """Pruning ratios by layer for each share of the teacher's cost, from sensitivities and measured latencies.

    Latencies of int8 and of fp32, for narrow layers are often faster in fp32: which, their measurements will say.

    Args:
        base: a shallower student that is narrowed to the same shares of the teacher's cost.
    """
    by_size = shop.spec.objective == "size"
    parent = base.model if base and base.model else shop.teacher
    whole = shop.share_of_teacher(base) if base else 1.0
    targets = {share / whole: share for share in settings.shrink if share < whole}
    rungs: dict[str, dict[str, object]] = {}
    for kind in () if not targets else ("int8",) if by_size else ("int8", "fp32"):
        spec = AllocateSpec(
            targets=tuple(targets),
            objective="size" if by_size else "latency",
            kind=kind,
            batch=shop.spec.measure.batch,
            threads=shop.spec.export.threads,
            round_to=shop.pruning.round_to,
        )
        label = f"{base.name}-{kind}" if base else kind
        outcome = shop.note(allocate(shop.job, spec, data=shop.data, parent=parent, label=label))
        for group in outcome.values["groups"] if base is None else ():
            width = group["width"]
            shop.sensitivity[group["name"]] = {f"{1 - left / width:.3g}": damage for left, damage in group["damages"]}
        # Targets that cannot be reached all end at the same smallest structure.
        for rung in outcome.values["ladder"]:
            rungs.setdefault(str(rung["ratios"]), {**rung, "kind": kind, "share": targets[rung["target"]]})
    return list(rungs.values())


def _moves(shop: Workshop, best: Measurement | None, settings: SearchSpec, seconds_left: float) -> list[Candidate]:
    """The candidates to train next, as many as may train at a time."""
    chosen: list[Candidate] = []
    while len(chosen) < min(settings.parallel, settings.trials - shop.trials):
        name = next_move(
            [shop.standing(c) for c in shop.candidates if c not in chosen],
            margin=shop.spec.gates.margin,
            rungs=settings.rungs,
            eta=settings.eta,
            incumbent=shop.cost(best) if best else None,
            seconds_left=seconds_left,
        )
        if name is None:
            break
        chosen.append(next(c for c in shop.candidates if c.name == name))
    return chosen


def _side_by_side(moves: list[Callable[[], None]]) -> None:
    if len(moves) == 1:
        moves[0]()
        return
    with ThreadPoolExecutor(max_workers=len(moves)) as pool:  # Prefect's run is in the context
        for future in [pool.submit(contextvars.copy_context().run, move) for move in moves]:
            future.result()


def _cheapest(shop: Workshop, forms: Iterable[Measurement]) -> Measurement | None:
    """The best form of those that keep the whole budget on validation, as the release chooses it."""
    passing = [m for m in forms if not failing_gates(shop.spec.gates, m, shop.baseline_measurement)]
    return best_of(shop.spec.objective, passing)[0] if passing else None


def _winner(shop: Workshop) -> Candidate | None:
    best = _cheapest(shop, shop.forms())
    return next(
        (c for c in shop.candidates if best and best.digest in {m.digest for m in (*c.forms, *c.earlier)}), None
    )


def _report(shop: Workshop) -> None:
    best = _cheapest(shop, shop.forms())
    last = shop.latest
    text = "" if last is None else f"{last.name}: {shop.line(last)}; "
    text += f"best {best.name}, {shop.line_of(best)}" if best else "nothing keeps the budget yet"
    limit = shop.spec.search.trials if shop.spec.search else 1
    tell(min(0.99, shop.trials / limit), f"{text} ({shop.trials} trainings, {shop.seconds / 60:.1f} min)")
