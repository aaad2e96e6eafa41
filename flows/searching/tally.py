"""What a search has made so far, and what that cost."""

from __future__ import annotations

import threading
from collections.abc import Callable

from flows.lineage import Made, MadeStep
from flows.searching.candidate import Candidate, released
from flows.searching.search_setup import SearchSetup
from model_registry.measurement import Measurement
from model_registry.variant import Variant
from tasks.evidence.search_summary import BestSoFar, MixTried
from tasks.export import export
from tasks.measure import measure, measurement_of
from tasks.running.errors import CANDIDATE_FAILURES
from tasks.running.journal import journal
from tasks.running.splits import DataRef
from tasks.running.stage import Outcome


class Tally:
    """Steps, candidates, measurements, trainings and seconds. Trainings side by side share it.

    Args:
        exported: the teacher as a file, measured as ``baseline``.
    """

    def __init__(self, steps: list[MadeStep], exported: Variant, baseline: Outcome) -> None:
        self.steps, self.exported, self.baseline = steps, exported, baseline
        self.candidates: list[Candidate] = []
        self.latest: Candidate | None = None
        self.trials = 0
        self.seconds = sum(step.outcome.cost_seconds for step in steps[1:])
        self.measured: dict[str, Outcome] = {}
        self.mixes: tuple[MixTried, ...] = ()
        """What the first training tried of labels and the teacher's answers."""
        self.untried: list[str] = []
        """What the teacher does not allow to be tried, and why."""
        self.planning_seconds = 0.0
        """Until the first training: examining the teacher, timing layers and structures."""
        self.carried: tuple[Measurement, ...] = ()
        """Files that a shorter search measured before."""
        self.curve: list[BestSoFar] = []
        """The best form each time that there was a better one."""
        self.control: Outcome | None = None
        """The winner's structure trained without the teacher, measured."""
        self._lock = threading.Lock()

    @classmethod
    def begin(cls, setup: SearchSetup) -> Tally:
        """With the teacher as exported (or the file that was brought), measured: the baseline."""
        steps, exported = [MadeStep(setup.trained)], setup.teacher
        if setup.teacher.format == "torch":
            outcome = export(setup.job, setup.spec.export, data=setup.data, parent=setup.teacher)
            steps.append(MadeStep(outcome, (setup.teacher,)))
            exported = outcome.variant
        return cls(steps, exported, measure(setup.job, setup.spec.measure, data=setup.data, variant=exported))

    def carry(self, earlier: Made) -> None:
        """Keep what a shorter search of the same question made: more minutes never end with less."""
        self.steps += earlier.steps[len(self.steps) :]
        self.carried = earlier.candidates
        self.measured |= {measurement_of(outcome).digest: outcome for outcome in earlier.measured[1:]}

    def count(self, outcome: Outcome, candidate: Candidate | None = None) -> Outcome:
        """Count what the outcome cost when it was computed, for its candidate too."""
        with self._lock:
            self.seconds += outcome.cost_seconds
        if candidate is not None:
            candidate.seconds += outcome.cost_seconds
        return outcome

    def count_training(self) -> None:
        """One of the trainings that a search may make has begun."""
        with self._lock:
            self.trials += 1

    def add_step(
        self,
        outcome: Outcome,
        parents: tuple[Variant, ...],
        candidate: Candidate | None = None,
        *,
        controls: tuple[str, ...] = (),
    ) -> Outcome:
        """Keep the outcome with what it was made from, and count it; ``controls`` as in :class:`MadeStep`."""
        return self.keep_step(self.count(outcome, candidate), parents, controls=controls)

    def keep_step(self, outcome: Outcome, parents: tuple[Variant, ...], *, controls: tuple[str, ...] = ()) -> Outcome:
        """Keep an outcome that is counted already, with what it was made from."""
        with self._lock:
            self.steps.append(MadeStep(outcome, parents, controls))
        return outcome

    def add_measured(self, variant: Variant, outcome: Outcome) -> Outcome:
        """Keep the measurement of the variant, and count it."""
        self.count(outcome)
        with self._lock:
            self.measured[variant.digest] = outcome
        return outcome

    def attempt(self, candidate: Candidate, work: Callable[[], None]) -> None:
        """A candidate that fails ends alone; what fails everything (the store, a stop) rises."""
        try:
            work()
        except CANDIDATE_FAILURES as error:
            candidate.failure = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            self.forgive()
        self.latest = candidate

    def forgive(self) -> None:
        """A stage failed, and the run goes on without what it was for."""
        notes = journal.get()
        if notes is not None:
            notes.failures.clear()

    def forms(self) -> tuple[Measurement, ...]:
        """Every file of every candidate that was trained (the teacher counts as trained), as it is now."""
        trained = [c for c in self.candidates if c.rung or c.kind == "teacher"]
        ours = [m for c in trained for m in (*c.forms, *c.earlier) if released(m)]
        known = {m.digest for m in ours}
        return (*ours, *(m for m in self.carried if m.digest not in known))

    def made(self, data: Outcome, checked: DataRef) -> Made:
        """Everything for MLflow, the report and the gates: the latest files of what was trained, and the control."""
        measured = [self.baseline, *(self.measured[m.digest] for m in self.forms() if m.digest in self.measured)]
        measured += [self.control] if self.control else []
        return Made(data, checked, tuple(self.steps), tuple(measured))
