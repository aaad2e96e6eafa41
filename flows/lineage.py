"""What a run made, and from what: the outcomes of the chain as rows for MLflow, the report and the gates."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from model_registry.manifest import FileEntry
from model_registry.measurement import Measurement
from model_registry.run_page import VariantRun
from model_registry.text_input import TEXT_INPUT
from model_registry.variant import Variant
from tasks.evidence.pareto import pareto_digests
from tasks.evidence.search_summary import SearchSummary
from tasks.measure import measurement_of
from tasks.report.left_out import omitted
from tasks.running.splits import DataRef
from tasks.running.stage import Outcome

CONTROL = "control"
"""What a student trained without the teacher is called: it shows what distillation gained and is never released."""


@dataclass(frozen=True)
class MadeStep:
    """One outcome and the variants it was made from, the one it changes first.

    ``controls``: digests of those of its variants that learned without the teacher, to show what the teacher gained.
    """

    outcome: Outcome
    parents: tuple[Variant, ...] = ()
    controls: tuple[str, ...] = ()

    @property
    def variants(self) -> tuple[Variant, ...]:
        return self.outcome.variants


@dataclass(frozen=True)
class Measured:
    """A variant and its measurement on validation."""

    variant: Variant
    measurement: Measurement


@dataclass(frozen=True)
class Made:
    """Everything the chain made. ``steps`` in order; ``measured`` with the baseline first."""

    data: Outcome
    checked: DataRef
    steps: tuple[MadeStep, ...]
    measured: tuple[Outcome, ...]
    search: SearchSummary | None = None
    settled: Outcome | None = None
    """What settled the task: an untrained model, or weights that were brought."""

    def with_search(self, summary: SearchSummary) -> Made:
        """The same, as the end of a search."""
        return replace(self, search=summary)

    def with_task(self, settled: Outcome) -> Made:
        """The same, with what settled the task."""
        return replace(self, settled=settled)

    @cached_property
    def measurements(self) -> tuple[Measurement, ...]:
        """On validation, the baseline first; one per digest (two ways may lead to the same file)."""
        return tuple({m.digest: m for m in map(measurement_of, self.measured)}.values())

    @property
    def baseline(self) -> Measurement:
        """The teacher as exported, or the file that was brought."""
        return self.measurements[0]

    @property
    def reads_text(self) -> bool:
        """Whether the model was made for texts."""
        return any(file.path == TEXT_INPUT for file in self.measured[0].variant.files)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the data checks and the comparison of targets and answers found that does not stop a run."""
        return tuple(map(str, (*self.data.values.get("warnings", ()), *self._task.get("warnings", ()))))

    @property
    def findings(self) -> tuple[str, ...]:
        """Sentences for the report: what was read and is learned, what distillation gained, what was left out."""
        read = (" ".join(("Data:", *facts)) for facts in [self.data.values.get("reading", ())] if facts)
        task = (f"Task {self._task['says']}.",) if self._task else ()
        gains = (_gain(step.outcome.values) for step in self.steps if "gain" in step.outcome.values)
        untried = (f"Not tried: {what.rstrip('.')}." for what in (self.search.untried if self.search else ()))
        return (*read, *task, *gains, *omitted(step.outcome for step in self.steps), *untried)

    @property
    def _task(self) -> dict[str, Any]:
        found: dict[str, Any] = self.settled.values.get("task", {}) if self.settled else {}
        return found

    @cached_property
    def variants(self) -> dict[str, Variant]:
        """Every variant by digest."""
        return {v.digest: v for step in self.steps for v in step.variants}

    @cached_property
    def parents(self) -> dict[str, tuple[str, ...]]:
        """Digests of what each variant was made from."""
        return {v.digest: tuple(p.digest for p in s.parents) for s in self.steps for v in s.variants}

    @cached_property
    def controls(self) -> frozenset[str]:
        """Digests of the controls and of all that was made of them, and of nothing else."""
        found: set[str] = set()
        others: set[str] = set()
        for step in self.steps:
            of_control = bool(step.parents) and step.parents[0].digest in found - others
            for variant in step.variants:
                (found if of_control or variant.digest in step.controls else others).add(variant.digest)
        return frozenset(found - others)

    @property
    def candidates(self) -> tuple[Measurement, ...]:
        """What may be released: every measured variant but the baseline and the controls."""
        return tuple(m for m in self.measurements[1:] if m.digest not in self.controls)

    def of(self, digest: str) -> Measured:
        """The variant of that digest with its measurement; KeyError if it was not measured."""
        return Measured(self.variants[digest], {m.digest: m for m in self.measurements}[digest])

    def rows(self, chosen: str | None = None, proven: Collection[str] = ()) -> tuple[VariantRun, ...]:
        """One row per measured variant, the baseline first.

        Args:
            proven: digests of what is registered besides the chosen one.
        """
        front = pareto_digests(self.measurements)
        return tuple(
            VariantRun(
                variant=self.variants[m.digest],
                measurement=m,
                parents=self.parents[m.digest],
                method=self.variants[m.digest].stage,
                params=_grids(m.digest, self.steps),
                history=self._history(m.digest),
                pareto=m.digest in front,
                chosen=m.digest == chosen,
                proven=m.digest in proven,
            )
            for m in self.measurements
        )

    def _history(self, digest: str) -> FileEntry | None:
        """The training curves of the variant, or of the nearest ancestor that was trained."""
        for step in self.steps:
            own = next((v for v in step.variants if v.digest == digest), None)
            if own is not None:  # a later step may have made the same under another name
                found = step.outcome.file(f"{own.name}.history.jsonl") or step.outcome.file("history.jsonl")
                if found or not step.parents:
                    return found
                return self._history(step.parents[0].digest)
        return None


def _grids(digest: str, steps: Iterable[MadeStep]) -> dict[str, str]:
    """How each group of weights was rounded, where bits are mixed."""
    known = (step.outcome.values.get("variants", {}).get(digest, {}) for step in steps)
    groups: dict[str, Any] = next((facts["groups"] for facts in known if "groups" in facts), {})
    return {
        f"grid of {name}": f"{group['bits']} bits in blocks of {group['block']}, {group['damage']:.2g} nats"
        for name, group in groups.items()
    }


def _gain(values: dict[str, Any]) -> str:
    low, high = values["gain_interval"]
    sure = "" if values["gain_p"] < 0.05 else ", which is within the noise"
    return (
        f"Distillation gained {values['gain']:+.4f} of {values['metric']} on validation over the same student trained "
        f"without the teacher (95 % interval {low:+.4f} to {high:+.4f}){sure}."
    )
