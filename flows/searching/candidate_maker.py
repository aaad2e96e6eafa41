"""How candidates come to be: the teacher as it is, narrower ones of it, and students; none is trained yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flows.searching.appraisal import Appraisal
from flows.searching.candidate import Candidate
from flows.searching.form_maker import FormMaker
from flows.searching.search_setup import SearchSetup
from flows.searching.tally import Tally
from tasks.allocate import AllocateSpec, allocate
from tasks.distill import distill
from tasks.prune import prune

_MOST = 0.5
"""Share of inherited weights from which importance and damage mean something before any training."""


class CandidateMaker:
    """Makes every candidate of a search and measures it untrained, so that its cost is known."""

    def __init__(self, setup: SearchSetup, tally: Tally, appraisal: Appraisal, forms: FormMaker) -> None:
        self.setup, self.tally, self.appraisal, self.forms = setup, tally, appraisal, forms
        self.sensitivity: dict[str, dict[str, float]] = {}
        """By group of the teacher's layers: the damage by the share that is removed."""

    def line_up(self, report: Callable[[], None]) -> None:
        """Make all of them; ``report`` is called after each."""
        self.add_teacher()
        report()
        if self.setup.teacher.format != "torch":
            return
        for rung in self._ladder():
            self.add_pruned(rung)
            report()
        for number, scale in enumerate(self.setup.settings.students):
            student = self.add_student(f"student{number + 1}", dict(scale))
            report()
            for rung in self._ladder(student) if student else ():
                self.add_pruned(rung, student)
                report()
        self._set_aside()

    def add_teacher(self) -> None:
        """The teacher itself, quantized: what costs no training."""
        setup, rungs = self.setup, self.setup.settings.rungs
        candidate = Candidate(
            "teacher", "teacher", "the teacher as it is", {}, setup.trainings, setup.teacher, rung=rungs
        )
        self._add(candidate, lambda: self.forms.of_teacher(candidate))

    def add_pruned(self, rung: Mapping[str, Any], base: Candidate | None = None) -> None:
        """The teacher with channels removed by the ratios.

        Args:
            rung: of the allocation's ladder.
            base: a shallower student that began with the teacher's layers, narrowed in its place.
        """
        share, kind = float(rung["share"]), rung["kind"]
        prefix, whole, its = (f"{base.name}-", base.what, "the teacher's") if base else ("", "teacher", "its")
        name = f"{prefix}pruned{round(100 * share):02d}" + ("f" if kind == "fp32" else "")
        what = f"{whole} pruned to {share:.0%} of {its} " + ("size" if self.setup.by_size else f"latency in {kind}")
        settings = {"ratios": dict(rung["ratios"]), **(base.settings if base else {})}
        candidate = Candidate(name, "pruned", what, settings, self.setup.trainings, base=base.name if base else "")
        candidate.damage = float(rung["predicted_damage"])

        def make() -> None:
            spec = self.setup.pruning.model_copy(update={"ratios": dict(rung["ratios"]), "epochs": 0, "steps": 1})
            teacher = self.setup.teacher
            parent = base.model if base and base.model else teacher
            outcome = prune(self.setup.job, spec, data=self.setup.data, parent=parent, teacher=teacher, label=name)
            candidate.model = self.tally.add_step(outcome, (parent,), candidate).variant
            self.forms.of_model(candidate, name)

        self._add(candidate, make)

    def add_student(self, name: str, scale: dict[str, Any]) -> Candidate | None:
        """A fresh narrower or shallower network.

        Returns:
            The candidate, if it began with most of the teacher's weights and may be narrowed like the teacher.
        """
        what = "student " + ", ".join(f"{k} {v}" for k, v in scale.items())
        candidate = Candidate(name, "student", what, {"scale": scale}, self.setup.trainings)

        def make() -> None:
            changes = {"scale": scale, "epochs": 0, "control": False, "inherit": True}
            spec, teacher = self.setup.distilling.model_copy(update=changes), self.setup.teacher
            outcome = distill(self.setup.job, spec, data=self.setup.data, teacher=teacher, label=name)
            candidate.model = self.tally.add_step(outcome, (teacher,), candidate).variants[0]
            candidate.inherited = float(outcome.values.get("inherited") or 0.0)
            self.forms.of_model(candidate, name)

        self._add(candidate, make)
        return candidate if candidate.inherited > _MOST and not candidate.failure else None

    def _add(self, candidate: Candidate, make: Callable[[], None]) -> None:
        self.tally.candidates.append(candidate)
        self.tally.attempt(candidate, make)

    def _set_aside(self) -> None:
        """Do without the pruned candidates that another one beats at both cost and planned damage."""
        open_ = [(c, self.appraisal.standing(c)) for c in self.tally.candidates if c.kind == "pruned"]
        plans = [(c, s.cost, c.damage) for c, s in open_ if s.possible and c.damage is not None]
        for candidate, cost, damage in plans:  # damages are measured against the unpruned network
            better = [(d, c, o.name) for o, c, d in plans if o.base == candidate.base and c <= cost and d < damage]
            candidate.behind = min(better)[2] if better else ""

    def _ladder(self, base: Candidate | None = None) -> list[dict[str, object]]:
        """Pruning ratios by layer for each share of the teacher's cost, from sensitivities and measured latencies.

        Latencies of int8 and of fp32, for narrow layers are often faster in fp32: which, their measurements will say.

        Args:
            base: a shallower student that is narrowed to the same shares of the teacher's cost.
        """
        setup = self.setup
        parent = base.model if base and base.model else setup.teacher
        whole = self.appraisal.share_of_teacher(base) if base else 1.0
        targets = {share / whole: share for share in setup.settings.shrink if share < whole}
        rungs: dict[str, dict[str, object]] = {}
        for kind in () if not targets else ("int8",) if setup.by_size else ("int8", "fp32"):
            spec = AllocateSpec(
                targets=tuple(targets),
                objective="size" if setup.by_size else "latency",
                kind=kind,
                batch=setup.spec.measure.batch,
                threads=setup.spec.export.threads,
                round_to=setup.pruning.round_to,
            )
            label = f"{base.name}-{kind}" if base else kind
            outcome = self.tally.count(allocate(setup.job, spec, data=setup.data, parent=parent, label=label))
            for group in outcome.values["groups"] if base is None else ():
                width, damages = group["width"], group["damages"]
                self.sensitivity[group["name"]] = {f"{1 - left / width:.3g}": damage for left, damage in damages}
            # Targets that cannot be reached all end at the same smallest structure.
            for rung in outcome.values["ladder"]:
                rungs.setdefault(str(rung["ratios"]), {**rung, "kind": kind, "share": targets[rung["target"]]})
        return list(rungs.values())
