"""What takes seconds comes before what takes hours: the task is settled, and every later stage is tried, untrained."""

from __future__ import annotations

from flows.language_limits import refuse_size
from flows.spec import PipelineSpec
from model_registry.variant import Variant
from tasks.distill import distill
from tasks.export import export
from tasks.measure import ClockSpec, clock
from tasks.prune import prune
from tasks.quantize import QuantizeSpec, quantize
from tasks.rehearse import RehearseSpec, rehearse
from tasks.running.splits import DataRef
from tasks.running.stage import Job, Outcome
from tasks.running.stage_cache import is_stored
from tasks.running.stage_plan import PlanLine, planning
from tasks.train import TRAIN, TrainSpec, bring

_CLOCK = ClockSpec(seconds=0.05)
_SECONDS = 20.0
"""Trainings that take no longer together are not worth a rehearsal, which takes some seconds."""
_STEP = 3.0
"""What a step of training takes, in answers to its rows: forward, and twice as long back."""


def settle(job: Job, spec: PipelineSpec, data: DataRef) -> Outcome:
    """What the model learns is settled on weights that were brought, or on an untrained model; see ``values["task"]``.

    Raises:
        WeightsMismatch, WorkloadError: the weights, the targets, the answers, the loss or the metric do not fit.
    """
    if spec.teacher is not None:
        outcome = bring(job, spec.teacher, data=data)
    else:
        outcome = rehearse(job, RehearseSpec(scale=(spec.train or TrainSpec()).scale), data=data)
    plan, task = planning.get(), outcome.values.get("task")
    if plan is not None and task is not None:
        plan.lines.append(
            PlanLine(
                name="task",
                action=task["kind"],
                reason="; ".join([task["says"].removeprefix(f"{task['kind']}: "), *task["warnings"]]),
            )
        )
    return outcome


def worth_trying(job: Job, spec: PipelineSpec, data: DataRef, settled: Outcome) -> bool:
    """Whether a later stage that fails would cost more than trying all of them: not where the teacher is there already,
    nor where nothing is trained or all trainings together take seconds."""
    train = spec.train or TrainSpec()
    if spec.teacher is not None and not (spec.distill or spec.prune or spec.qat or spec.search):
        return False
    if spec.teacher is None and is_stored(TRAIN, job, train, data=data):
        return False
    row_seconds: float | None = settled.values.get("row_seconds")
    if row_seconds is None or spec.search:
        return True
    epochs = train.epochs
    epochs += spec.distill.epochs * (1 + spec.distill.control) if spec.distill else 0
    epochs += spec.prune.epochs if spec.prune else 0
    return _STEP * row_seconds * data.split("train").rows * epochs > _SECONDS


def try_stages(job: Job, spec: PipelineSpec, data: DataRef, teacher: Variant) -> None:
    """Run every stage that the spec asks for on the teacher before its training, without training anything.

    A model that cannot be exported, pruned, quantized, loaded or timed is refused here, in seconds and by the named
    error of that stage. What the stages make of weights that were brought is what they make of them later.
    """
    if teacher.format != "torch":  # a file that was brought: its next stage is quantize
        return
    file = export(job, spec.export, data=data, parent=teacher).variant
    student = teacher
    if spec.distill and not spec.search:
        untrained = spec.distill.model_copy(update={"epochs": 0, "control": False})
        student = distill(job, untrained, data=data, teacher=teacher, label="untrained-student").variants[0]
    if spec.prune and not spec.search:
        # Ranked by their weights and layer by layer: gradients and ranks across layers say nothing before training.
        quick = {"epochs": 0, "steps": 1, "importance": "magnitude", "scope": "local", "batchnorm_batches": 1}
        untuned = spec.prune.model_copy(update=quick)
        prune(job, untuned, data=data, parent=student, teacher=teacher, label="untrained-pruned")
    made: tuple[Variant, ...] = ()
    if spec.quantize or spec.search:
        plain = {"calibration_samples": 16, "calibration_method": "minmax", "accuracy_control": None}
        rough = (spec.quantize or QuantizeSpec()).model_copy(update=plain)
        quantized = quantize(job, rough, data=data, parent=file)
        if not (spec.distill or spec.prune or spec.search):  # what they make may be small enough
            refuse_size(spec, [quantized])
        made = quantized.variants
    clock(job, _CLOCK, data=data, variants=(file, *made), baseline=file, label=teacher.name)
