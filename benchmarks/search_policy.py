"""How well a search's rules do on made-up tasks, whose trainings take no time: ``python benchmarks/search_policy.py``.

The product's own search decides (`flows/searching/search.py`): which structures are looked at, what is trained how
long, when it ends. Only what makes, trains and measures is replaced, by :mod:`benchmarks.made_up_tasks`. The test split
is another draw, met in the order that the release has. So a rule can be tried in a minute on hundreds of tasks, where a
row of the proof takes half an hour; what wins here is to be shown there. To compare two states of the code run it in
both with the same ``--tasks``: they are the same tasks.
"""

from __future__ import annotations

import argparse
import io
import math
import sys
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

sys.path.append(str(Path(__file__).parent.parent))

from benchmarks.made_up_tasks import INHERITED, INT8_SIZE, TEST, TRAIN, MadeUpTask, Structure
from flows.lineage import MadeStep
from flows.searching.appraisal import Appraisal
from flows.searching.candidate import Candidate
from flows.searching.candidate_maker import CandidateMaker
from flows.searching.form_maker import FormMaker
from flows.searching.rung_trainer import RungTrainer
from flows.searching.search import explore
from flows.searching.search_setup import SearchSetup
from flows.searching.tally import Tally
from flows.searching.training_plan import TrainingPlan
from flows.searching.workshop import Workshop
from flows.spec import PipelineSpec
from model_registry.manifest import FileEntry, hash_bytes
from model_registry.measurement import (
    Clocked,
    Hardware,
    LatencyIntervals,
    Measurement,
    MetricEstimate,
    PairedComparison,
    Speedup,
    Throughput,
)
from model_registry.variant import Variant
from tasks.distill import DistillSpec
from tasks.running.splits import DataRef, MetricRef, SplitRef
from tasks.running.stage import Job, Outcome, WorkloadRef
from tasks.validate.sequence import fixed_sequence

_WORKLOAD = WorkloadRef(path="nobody:Nothing")
_FILE = FileEntry(path="file", sha256="0" * 64, size=1)
_HARDWARE = Hardware(cpu="none", cores=2, cpu_class="none", memory_bytes=1 << 33, python="3", onnxruntime="1")
_EXAMINING, _MAKING, _CLOCKING, _MEASURING, _BEGINNING = 20.0, 2.0, 1.0, 2.5, 4.0
"""Seconds that each takes."""
_BYTES = 1e6
"""Of the teacher."""
_ONE_SIDED, _TWO_SIDED = 1.645, 1.96
_ACCURACY = 0.9
_TEACHER_DIFFERS = 0.01
"""Share of the answers in which the teacher's int8 file differs from it."""


@dataclass(frozen=True)
class Found:
    """What a search came to: costs as shares of the teacher's, latency and size together."""

    proven: float
    released: float
    possible: float
    seconds: float
    trainings: int


def main() -> None:
    """Search on all tasks; a line for each, or the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=160)
    parser.add_argument("--each", action="store_true", help="a line for each task")
    parser.add_argument("--powers", type=float, nargs=2, default=(0.5, 1.4), help="with which losses fall")
    arguments = parser.parse_args()
    found = [searched(MadeUpTask(seed, tuple(arguments.powers))) for seed in range(arguments.tasks)]
    for number, one in enumerate(found if arguments.each else ()):
        costs = zip(("proven", "released", "possible"), (one.proven, one.released, one.possible), strict=True)
        shown = ", ".join(f"{what} {1 / cost:.1f}x" for what, cost in costs)
        print(f"{number}: {shown}; {one.trainings} trainings, {one.seconds:.0f} s")
    logs = np.log([[one.proven, one.released, one.possible] for one in found])
    proven, released, possible = np.exp(-logs.mean(axis=0))
    error = logs[:, 1].std() / math.sqrt(len(found))
    print(
        f"{len(found)} tasks, geometric means: proven on validation {proven:.2f}x, released {released:.2f}x "
        f"(standard error {error:.0%}), possible {possible:.2f}x; "
        f"{np.mean([one.trainings for one in found]):.1f} trainings"
    )


def searched(task: MadeUpTask) -> Found:
    """A search, and the test split after it."""
    shop = MadeUpShop(task)
    with redirect_stderr(io.StringIO()):
        explore(shop, shop.setup.settings)
    appraisal, forms = shop.appraisal, shop.tally.forms()
    best = appraisal.cheapest(forms)
    released = 1.0
    passing = [form for form in forms if appraisal.passes(form)]
    for form in fixed_sequence("both", passing, best, task.margin) if best is not None else ():
        loss = shop.losses[form.digest]
        if form.name == "teacher":
            released = task.teachers_cost  # which differs in so few answers that no sample refuses it
            continue
        error = task.error(loss, TEST)
        if task.seen(f"{form.name}, tested", loss, TEST) + _ONE_SIDED * error > task.margin:
            break
        released = appraisal.cost(form) / appraisal.cost(appraisal.baseline)
    proven = appraisal.cost(best) / appraisal.cost(appraisal.baseline) if best is not None else 1.0
    return Found(proven, released, task.possible(), shop.tally.seconds, shop.tally.trials)


class MadeUpShop(Workshop):
    """A workshop that makes, trains and measures nothing.

    Attributes:
        losses: true ones, by the digest of the file.
        inherited: epochs that a candidate need not have, for the network that was narrowed had them.
    """

    def __init__(self, task: MadeUpTask) -> None:
        self.task, self.losses = task, dict[str, float]()
        self.inherited: dict[str, float] = {}
        trained = _outcome("teacher", 0.0, variants=(_variant("teacher"),))
        tally = Tally([MadeStep(trained)], trained.variant, trained)
        self.setup, self.tally = _setup(task, trained), tally
        self.plan = TrainingPlan(self.setup, tally.candidates)
        self.appraisal = Appraisal(self.setup, self.measured("teacher.fp32", 1.0, 1.0), self.plan)
        forms = _Forms(self)
        self.maker, self.trainer = _Maker(self, forms), _Trainer(self, forms)

    def measured(
        self, name: str, latency: float, size: float, loss: float | None = None, seen: float | None = None
    ) -> Measurement:
        """A file's measurement; the baseline's where no loss is given."""
        task, digest, compared = self.task, hash_bytes(name.encode()), dict[str, Any]()
        if loss is not None:
            self.losses[digest] = loss
            error = task.error(loss, task.rows)
            shown = task.seen(name, loss, task.rows) if seen is None else seen
            compared["speedup"] = Speedup(
                value=1 / latency, interval=(0.99 / latency, 1.01 / latency), verdict="faster"
            )
            compared["paired"] = PairedComparison(
                reference=self.appraisal.baseline.digest,
                samples=task.rows,
                better=0,
                worse=0,
                better_indices=(),
                worse_indices=(),
                difference=-shown,
                interval=(-shown - _TWO_SIDED * error, -shown + _TWO_SIDED * error),
                bound=shown + _ONE_SIDED * error,
                p=0.5,
                test="mcnemar",
            )
        metric = _ACCURACY - (loss or 0.0)
        return Measurement(
            digest=digest,
            baseline=digest if loss is None else self.appraisal.baseline.digest,
            name=name,
            stage="export",
            split="validation",
            samples=task.rows,
            data="d" * 64,
            hardware=_HARDWARE,
            threads=1,
            batch=1,
            metric=MetricEstimate(name="accuracy", better="higher", value=metric, interval=(metric, metric)),
            p50_ms=latency,
            p95_ms=1.1 * latency,
            latency_interval=LatencyIntervals(p50=(0.99 * latency, 1.01 * latency), p95=(latency, 1.2 * latency)),
            throughput=Throughput(value=1 / latency, interval=(0.9 / latency, 1.1 / latency)),
            peak_rss_bytes=1,
            cpu_seconds=latency,
            bytes=int(_BYTES * size),
            parameters=1,
            predictions=_FILE,
            scores=_FILE,
            **compared,
        )

    def structure(self, candidate: Candidate) -> Structure:
        """What the candidate is."""
        return next(s for s in self.task.structures if s.name == candidate.name)


class _Forms(FormMaker):
    def __init__(self, shop: MadeUpShop) -> None:
        super().__init__(shop.setup, shop.tally, shop.appraisal)
        object.__setattr__(self, "shop", shop)

    shop: MadeUpShop

    def sketch(self, candidate: Candidate) -> None:
        candidate.sketches = (_variant(candidate.name),)

    def clock(self, candidates: Any) -> None:
        self.tally.seconds += _CLOCKING
        for candidate in candidates:
            structure = self.shop.structure(candidate)
            form = self.shop.measured(f"{candidate.name}-sketched", structure.latency, structure.size, 0.0, 0.0)
            fields = ("digest", "name", "bytes", "batch", "p50_ms", "p95_ms", "throughput", "speedup")
            candidate.clocked = (Clocked(tail_share=0.5, **{name: getattr(form, name) for name in fields}),)

    def of_model(self, candidate: Candidate, *, last: bool = False) -> None:
        self.tally.seconds += _MEASURING
        structure, name = self.shop.structure(candidate), f"{candidate.name}-r{candidate.rung}"
        candidate.float32 = _variant(name)
        loss = self.shop.task.loss(structure, candidate.epochs[-1] + self.shop.inherited.get(candidate.name, 0.0))
        candidate.forms = (self.shop.measured(name, structure.latency, structure.size, loss),)

    def refine(self, candidate: Candidate, label: str) -> None:
        """There is no int8 file to be refined."""


class _Maker(CandidateMaker):
    def __init__(self, shop: MadeUpShop, forms: FormMaker) -> None:
        super().__init__(shop.setup, shop.tally, shop.appraisal, forms)
        self.shop = shop
        self.ladders.answer_seconds = shop.task.epoch_seconds / shop.plan.rows / 3

    def line_up(self, report: Any) -> None:
        setup, task, rows = self.setup, self.shop.task, self.shop.plan.rows
        rungs = setup.settings.rungs
        teacher = Candidate("teacher", "teacher", "", {}, rungs, setup.teacher, rung=rungs)
        teacher.row_seconds = task.epoch_seconds / rows
        form = self.shop.measured("teacher", task.int8, INT8_SIZE, 0.0, 0.0)
        assert form.paired is not None
        bound = _ONE_SIDED * math.sqrt(_TEACHER_DIFFERS / task.rows)
        teacher.forms = (form.model_copy(update={"paired": form.paired.model_copy(update={"bound": bound})}),)
        self.tally.candidates.append(teacher)
        self.tally.seconds += _EXAMINING
        for structure in task.structures:
            kind: Literal["cut", "pruned"] = "cut" if structure.name == structure.base else "pruned"
            made = Candidate(structure.name, kind, "", {}, setup.trainings)
            made.base = structure.base if kind == "pruned" else ""
            made.row_seconds = task.epoch_seconds / rows * structure.time
            made.inherited = 1.0 if kind == "cut" else 0.0
            if kind == "pruned":
                made.planned_share, made.planned_bytes = structure.planned, _BYTES * structure.size
                made.planned, made.damage = math.sqrt(structure.planned * made.planned_bytes), structure.damage
            else:
                made.model = made.untrained = _variant(structure.name)
                self.forms.clock([made])
            self.tally.candidates.append(made)
        self.set_aside()

    def _prune(self, candidate: Candidate) -> None:
        self.tally.seconds += _MAKING
        candidate.model = candidate.untrained = _variant(candidate.name)
        base = next((c for c in self.tally.candidates if c.name == candidate.base), None)
        if base is not None and base.epochs:
            self.shop.inherited[candidate.name] = INHERITED * base.epochs[-1]
        self.forms.sketch(candidate)


class _Trainer(RungTrainer):
    def __init__(self, shop: MadeUpShop, forms: FormMaker) -> None:
        super().__init__(shop.plan, shop.tally, shop.appraisal, forms)
        self.shop = shop

    def _taught(self, candidate: Candidate, spec: DistillSpec) -> Outcome:
        task, structure = self.shop.task, self.shop.structure(candidate)
        epochs, seconds = self.plan.next_epochs(candidate), task.epoch_seconds * structure.time
        before = (candidate.epochs[-1] if candidate.epochs else 0.0) + self.shop.inherited.get(candidate.name, 0.0)
        loss = task.loss(structure, epochs + before)
        untaught = task.margin if spec.alpha == 0 else 0.0
        student = {"val_metric": _ACCURACY - loss - untaught, "val_loss": 1 + loss, "first_val_loss": 3.0}
        values = {"epoch_seconds": seconds, "student": student}
        name = f"{candidate.name}-{candidate.rung} {spec.alpha} {spec.learning_rate}"
        made = _outcome(name, epochs * seconds + _BEGINNING, values, (_variant(f"{candidate.name}-{candidate.rung}"),))
        if made.key not in self._counted:
            self._counted.add(made.key)
            self.tally.count(made, candidate)
        return made


def _setup(task: MadeUpTask, trained: Outcome) -> SearchSetup:
    spec = PipelineSpec.model_validate(
        {
            "model": "made-up",
            "workload": _WORKLOAD,
            "budget": {"max_accuracy_drop": task.margin},
            "gates": {"per_class_margin": None},
            "search": {"minutes": task.minutes},
        }
    )
    rows = {"train": TRAIN, "validation": task.rows, "test": TEST}
    data = DataRef(
        fingerprint="d" * 64,
        splits=tuple(SplitRef(name=name, file=_FILE, rows=count) for name, count in rows.items()),
        columns={},
        task="classes",
        metric=MetricRef(name="accuracy", better="higher", builtin=True),
    )
    job = Job(run_id="r", model="made-up", store="s3://none", workload=_WORKLOAD)
    return SearchSetup.of(job, spec, data, trained, ())


def _variant(name: str) -> Variant:
    file = FileEntry(path="file", sha256=hash_bytes(name.encode()), size=1)
    return Variant(name=name, stage="train", format="torch", files=(file,), inputs=(), outputs=())


def _outcome(
    name: str, seconds: float, values: dict[str, Any] | None = None, variants: tuple[Variant, ...] = ()
) -> Outcome:
    key = hash_bytes(f"{name} {seconds}".encode())
    return Outcome(
        stage="distill",
        name=name,
        status="computed",
        seconds=0.0,
        cost_seconds=seconds,
        key=key,
        version="v",
        values=values or {},
        variants=variants,
    )


if __name__ == "__main__":
    main()
