"""The main flow: train -> distill -> prune -> quantize -> validate -> register -> deploy, as it is, top to bottom."""

from __future__ import annotations

from functools import partial
from typing import Any

from prefect import State, flow
from prefect.states import Failed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows.ahead import draw_ahead, import_ahead
from flows.champion import refused_decision, standing_champion
from flows.conclusion import concluding
from flows.example_request import curl_line
from flows.language_limits import refuse_misplaced, refuse_size, trainable
from flows.lineage import Made, MadeStep
from flows.ongoing_run import OngoingRun, make_job, open_run
from flows.rehearsal import settle, try_stages, worth_trying
from flows.searching.search import search
from flows.spec import PipelineSpec, load_spec
from flows.targets import make_targets
from flows.worker_log import write_past_worker
from model_registry.store import CorruptObject, ObjectMissing
from model_registry.variant import Variant
from tasks.compile import require_targets
from tasks.data import check_data, data_ref, understood
from tasks.distill import distill
from tasks.evidence.split_uses import note_use, worn_text
from tasks.export import export
from tasks.measure import ContinueSpec, continuations_in, continue_texts, measure, measurement_of
from tasks.prune import prune
from tasks.qat import qat
from tasks.quantize import quantize
from tasks.rehearse import settled_data
from tasks.release.deploy import deploy
from tasks.release.ledger_protocol import patiently
from tasks.release.register import register
from tasks.release.show_versions import show_versions
from tasks.report.run_report import RunReport
from tasks.rival import RivalSpec, rival
from tasks.running.errors import CANDIDATE_FAILURES, GateFailed
from tasks.running.measuring_machine import require_machines
from tasks.running.ray_nodes import require_cluster
from tasks.running.splits import DataRef
from tasks.running.stage import Job
from tasks.running.stage_plan import Plan, PlanLine, planning
from tasks.track import track
from tasks.train import TrainSpec, train
from tasks.validate import decision_of, refuse_hopeless, validate

RUNNER: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=2)


@flow(name="compress", task_runner=RUNNER, persist_result=False)
def compress(
    spec: PipelineSpec | str = "digits", overrides: list[str] | None = None, run_id: str | None = None
) -> RunReport | State[RunReport]:
    """Make a model small, prove that it is as good, and put it behind the endpoint.

    Args:
        spec: the whole spec, or the name or path of one.
        overrides: changes to a spec given by name, such as ``prune.ratio=0.2``.
        run_id: its name in the store, MLflow and the logs; made up where absent.
    """
    write_past_worker()
    spec = spec if isinstance(spec, PipelineSpec) else load_spec(spec, overrides or [])
    try:
        with open_run(spec, run_id) as run:
            try:
                return release(run, make_variants(run.job, spec))
            except (CorruptObject, ObjectMissing) as broken:
                # It was quarantined when it was opened: walking again computes it and reuses everything else.
                run.recover(f"computed again: {broken}")
                return release(run, make_variants(run.job, spec))
    except GateFailed as refusal:
        return Failed(name="Refused", message=refusal.message)


def make_variants(job: Job, spec: PipelineSpec) -> Made:
    """The chain from the data to every variant, measured. Each step is looked up before it is computed."""
    require_targets(spec.targets, counts_luts=spec.measure.luts_below is not None)
    if spec.place == "ray":
        require_cluster()
    require_machines(job)
    data = check_data(job, spec.data)
    import_ahead(data)
    checked = data_ref(data)
    refuse_misplaced(spec, checked)

    settled = settle(job, spec, checked)  # brought, or untrained
    checked = settled_data(checked, settled)
    job = job.learning(checked.task)
    refuse_hopeless(spec.gates, checked)
    if worth_trying(job, spec, checked, settled):
        try_stages(job, spec, checked, settled.variant)
    trained = settled if spec.teacher else train(job, spec.train or TrainSpec(), data=checked)
    import_ahead(trained)
    others = more_teachers(job, spec, checked)
    if spec.search:  # a budget in, the proven best variant out
        return search(job, spec, data=data, checked=checked, trained=trained, others=others).with_task(settled)
    teacher = student = trained.variant
    models, controls = [MadeStep(trained)], tuple[str, ...]()
    if spec.distill:  # the student, and its control trained without the teacher
        distilled = distill(job, spec.distill, data=checked, teacher=teacher, others=others)
        controls = tuple({v.digest for v in distilled.variants[1:]} - {distilled.variants[0].digest})
        models.append(MadeStep(distilled, (teacher,), controls))
        student = distilled.variants[0]
    if spec.prune:
        pruned = prune(job, spec.prune, data=checked, parent=student, teacher=teacher)
        models.append(MadeStep(pruned, (student, teacher) if spec.distill else (teacher,)))
    import_ahead(*(step.outcome for step in models))

    exported = [MadeStep(trained)]  # an ONNX file that was brought enters here
    if teacher.format == "torch":
        # One after the other: a second process would spend longer on importing torch than on exporting.
        torch_models = [v for m in models for v in m.variants]
        exported = [MadeStep(export(job, spec.export, data=checked, parent=v), (v,)) for v in torch_models]
    quantized = []
    if spec.quantize:
        floats = [v for e in exported for v in e.variants if not e.parents or e.parents[0].digest not in controls]
        futures = [(v, quantize.submit(job, spec.quantize, data=checked, parent=v)) for v in floats]
        quantized = [MadeStep(future.result(), (model,)) for model, future in futures]
        refuse_size(spec, [step.outcome for step in quantized])
    if spec.qat:
        # Of a decoder's file it takes the torch model to tell which weight is which.
        sources = {v.digest: e.parents[0] for e in exported if checked.language and e.parents for v in e.variants}
        for model, low in [(s.parents[0], low) for s in quantized for low in trainable(s.outcome, checked)]:
            source = sources.get(model.digest, model)
            trained_on = qat(job, spec.qat, data=checked, parent=low, teacher=teacher, float_parent=source)
            quantized.append(MadeStep(trained_on, (low, teacher)))

    variants = [v for s in [*exported, *quantized] for v in s.variants]
    baseline = measure(job, spec.measure, data=checked, variant=variants[0])
    measured = [measure(job, spec.measure, data=checked, variant=v, baseline=baseline) for v in variants[1:]]
    made = Made(data, checked, (*models, *exported, *quantized), (baseline, *measured))
    return made.with_task(settled)


def more_teachers(job: Job, spec: PipelineSpec, data: DataRef) -> tuple[Variant, ...]:
    """The rest of an ensemble: the teacher trained again from other seeds."""
    seeds = range(job.seed + 1, job.seed + (spec.distill.teachers if spec.distill else 1))
    jobs = [(f"seed-{seed}", job.model_copy(update={"seed": seed})) for seed in seeds]
    return tuple(train(again, spec.train or TrainSpec(), data=data, label=label).variant for label, again in jobs)


def release(run: OngoingRun, made: Made) -> RunReport:
    """From measured variants to the champion: proven on the test split, tracked, registered, deployed."""
    run.job = run.job.learning(made.checked.task)
    job, spec, checked = run.job, run.spec, made.checked
    champion = patiently(lambda: standing_champion(run, made))
    opponent = None
    if champion and champion.variant:
        standing, reference = champion.variant, made.measured[0]
        opponent = measure(job, spec.measure, data=checked, variant=standing, baseline=reference, label="champion")
    run.describe(made)
    if spec.rival or made.reads_text:
        compare_with_rival(run, spec.rival or RivalSpec(), checked)

    decision = refusal = None
    try:
        proof = validate(
            job,
            spec.gates,
            data=checked,
            baseline=made.baseline,
            candidates=made.candidates,
            champion=measurement_of(opponent) if opponent else None,
            predict_batch=spec.measure.predict_batch,
        )
        decision = decision_of(proof)
    except GateFailed as error:
        refusal, decision = error, refused_decision(error)
    run.decide(decision)
    if decision is not None:
        uses = patiently(
            lambda: note_use(run.store, checked.split("test").file, decision, run_id=job.run_id, model=job.model)
        )
        run.warn(worn_text(uses))
    if decision is not None and checked.language is not None and decision.chosen != made.baseline.digest:
        show_continuations(run, made, decision.chosen)
    draw_ahead(run.report)
    rows = made.rows(run.report.chosen, decision.front if decision else ())
    tracked = run.show(lambda: track(job, data=checked, rows=rows, origin=run.origin, links=run.report.links))

    with concluding(run, made, rows, tracked):  # MLflow's run ends as ours does, whatever happens
        if refusal or decision is None:
            raise refusal or AssertionError("no decision and no refusal")
        chosen = made.of(decision.chosen)
        versions = register(
            job,
            data=checked,
            variant=chosen.variant,
            measurement=chosen.measurement,
            others=tuple(row for row in rows if row.proven and not row.chosen),
        )
        version = versions[decision.chosen]
        if tracked:
            show = partial(show_versions, job, versions=versions, chosen=decision.chosen, rows=rows, tracked=tracked)
            run.show(show)
        run.update(status="registered", version=version, front=versions if decision.front else {})
        if spec.deploy:
            deployed = deploy(
                job.store,
                job.model,
                spec.deploy,
                version=version,
                digest=decision.chosen,
                champion_seq=champion.entry.seq if champion else 0,
            )
            run.update(status="released", endpoint=deployed.url if deployed.served else None)
            for text in deployed.warnings:
                run.warn(text)
            run.update(curl=patiently(lambda: curl_line(run, made, chosen, deployed.url)))
        make_targets(run, chosen.variant, checked)
    return run.report


def compare_with_rival(run: OngoingRun, spec: RivalSpec, data: DataRef) -> None:
    """Say in the report how the rival does. It decides nothing, so nothing ends where it fails."""
    try:
        run.note(rival(run.job, spec, data=data).values["text"])
    except CANDIDATE_FAILURES as error:
        run.journal.failures.clear()
        run.warn(f"there is no rival to compare with: {type(error).__name__}: {error}")


def show_continuations(run: OngoingRun, made: Made, chosen: str) -> None:
    """Put what the chosen model and the baseline say into the report. It decides nothing, as the rival."""
    variant, baseline = made.of(chosen).variant, made.of(made.baseline.digest).variant
    try:
        found = continue_texts(run.job, ContinueSpec(), data=made.checked, variant=variant, baseline=baseline)
        run.update(continuations=continuations_in(found))
    except CANDIDATE_FAILURES as error:
        run.journal.failures.clear()
        run.warn(f"continuations cannot be shown: {type(error).__name__}: {error}")


def plan(spec: PipelineSpec) -> list[PlanLine]:
    """What a run of the spec would compute or reuse up to the measurements, and why. Only looks: nothing is trained."""
    plan = Plan()
    token = planning.set(plan)
    try:
        made = make_variants(make_job(spec, "plan"), spec)
    finally:
        planning.reset(token)
    first, *others = plan.lines
    return [first.model_copy(update={"notes": understood(made.data)}), *others]
