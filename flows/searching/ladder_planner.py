"""Ladders of narrower structures, planned from measured damage and layer latencies; none is made here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Any

from flows.searching.appraisal import Appraisal
from flows.searching.candidate import Candidate
from flows.searching.search_setup import SearchSetup
from flows.searching.tally import Tally
from model_registry.measurement import Clocked, Measurement
from tasks.allocate import AllocateSpec, allocate, find_damage
from tasks.evidence.objective_cost import objective_cost
from tasks.running.errors import PruningRefused
from tasks.running.stage import Outcome

_SHARES = (
    *(0.7, 0.6, 0.5, 0.43, 0.36, 0.3, 0.26, 0.22, 0.19, 0.16, 0.14, 0.12),
    *(0.1, 0.09, 0.08, 0.07, 0.06, 0.05, 0.04, 0.03, 0.02),
)
"""Of the teacher's cost: as far down as layers can be narrowed, where the spec names no shares of its own."""
_TIMING = 0.04
"""Of the minutes, for timing layers; at least the seconds that a coarse table takes, at most those of a fine one."""
_TABLE_SECONDS = (4.0, 40.0)
_LEAST_TIME = 0.1
"""Of the time of a training step, however narrow the layers; else it is expected to fall as the latency does."""
_MOST_CUTS = 3
"""Ways of cutting the teacher, each of which has a ladder of its own."""
_ROWS_A_MINUTE, _FEWEST_ROWS, _MOST_ROWS = 10, 64, 256
"""Rows on which damage is measured."""


class LadderPlanner:
    """Plans candidates of falling cost, each with the channels per layer that do the least damage at its cost."""

    def __init__(self, setup: SearchSetup, tally: Tally, appraisal: Appraisal) -> None:
        self.setup, self.tally, self.appraisal = setup, tally, appraisal
        self.sensitivity: dict[str, dict[str, float]] = {}
        """By group of the teacher's layers: the damage by the share that is removed."""
        self.offers: tuple[dict[str, Any], ...] = ()
        """Arguments of the workload's ``model()`` that make other networks."""
        self.augments = False
        """Whether training rows change from epoch to epoch."""
        self.answer_seconds = 0.0
        """What the teacher takes to answer a row."""

    def examine(self) -> None:
        """Learn what the search has to know of the teacher.

        Raises:
            PruningRefused: it cannot be traced, or there is nothing to narrow; the rest is known all the same.
        """
        outcome = self._find_damage(None)
        self.tally.candidates[0].row_seconds = float(outcome.values["row_seconds"])
        self.augments = bool(outcome.values["augments"])
        self.offers = tuple(outcome.values["offers"])
        self.answer_seconds = float(outcome.values["answer_seconds"])
        left_alone: Mapping[str, str] = outcome.values.get("left_alone", {})
        self.tally.untried += [
            f"narrowing {name}, whose width is counted on: {why}" for name, why in left_alone.items()
        ]
        if "refused" in outcome.values:
            raise PruningRefused(outcome.values["refused"])

    def plan(self, base: Candidate | None) -> None:
        """Narrower ones of the teacher, or of a student that is narrowed in its place, at each share of the cost."""
        if base is not None:
            self._find_damage(base)
        share_text = "size" if self.setup.by_size else "cost in "
        prefix, whole, its = (f"{base.name}-", base.what, "the teacher's") if base else ("", "teacher", "its")
        for rung in self._ladder(base):
            share, form = float(rung["share"]), str(rung["form"])
            name = self._unused(f"{prefix}pruned{round(100 * share):02d}" + ("f" if form == "fp32" else ""))
            what = f"{whole} pruned to {share:.0%} of {its} {share_text}{'' if self.setup.by_size else form}"
            settings = {"ratios": dict(rung["ratios"]), **(base.settings if base else {})}
            candidate = Candidate(name, "pruned", what, settings, self.setup.trainings, base=base.name if base else "")
            candidate.damage, candidate.planned = float(rung["predicted_damage"]), float(rung["cost"])
            candidate.form = form
            candidate.planned_share = 0.0 if self.setup.by_size else float(rung["latency_share"])
            candidate.row_seconds = (base or self.tally.candidates[0]).row_seconds * max(_LEAST_TIME, rung["time"])
            # Planned for fp32 it may still be kept in int8 weights.
            candidate.planned_bytes = float(rung["predicted_bytes"]) / (4 if form == "fp32" else 1)
            self.tally.candidates.append(candidate)

    def _unused(self, name: str) -> str:
        """The name, or it with a number: shares of the cost that round to the same percent are two candidates."""
        taken = {candidate.name for candidate in self.tally.candidates}
        return name if name not in taken else next(n for i in count(2) if (n := f"{name}x{i}") not in taken)

    def _ladder(self, base: Candidate | None) -> Iterable[Mapping[str, Any]]:
        """Pruning ratios by layer for each share of the teacher's cost, from sensitivities and measured latencies.

        Latencies of int8 and of fp32, for narrow layers are often faster in fp32: which, their measurements will say.

        Args:
            base: a shallower student that is narrowed to the same shares of the teacher's cost.
        """
        rungs: dict[str, Mapping[str, Any]] = {}
        for form in self._forms(base):
            file, teachers_file = self._whole(base, form), self._whole(None, form)
            if file is None or teachers_file is None:
                continue
            whole, teachers = self.appraisal.cost(file), self.appraisal.cost(teachers_file)
            shares = _SHARES if self.setup.settings.shrink is None else self.setup.settings.shrink
            targets = {share * teachers / whole: share for share in shares if share * teachers < whole}
            if not targets:
                continue
            outcome = self.tally.count(self._allocate(base, form, tuple(targets)))
            for group in outcome.values["groups"] if base is None else ():
                width, damages = group["width"], group["damages"]
                self.sensitivity[group["name"]] = {f"{1 - left / width:.3g}": damage for left, damage in damages}
            # Targets that cannot be reached all end at the same smallest structure.
            for rung in outcome.values["ladder"]:
                cost = whole * self._shrunk(rung, outcome.values["parent"])
                rungs.setdefault(
                    str(rung["ratios"]),
                    {
                        **rung,
                        "form": form,
                        "share": targets[rung["target"]],
                        "cost": cost,
                        "time": (time := rung["predicted_ms"] / outcome.values["parent"]["ms"]),
                        "latency_share": file.latency_share[0] * time,
                    },
                )
        return rungs.values()

    def _shrunk(self, rung: Mapping[str, Any], parent: Mapping[str, Any]) -> float:
        """What is left of the cost, as the objective counts it, by the allocation."""
        latency, size = rung["predicted_ms"] / parent["ms"], rung["predicted_bytes"] / parent["bytes"]
        return objective_cost(self.setup.spec.objective, latency=latency, size=size, throughput=1 / latency)

    def _forms(self, base: Candidate | None) -> tuple[str, ...]:
        """In which the latencies are taken: int8 where it pays at all, fp32, or for a base the better of the two."""
        if self.setup.by_size:
            return ("int8",)
        int8, fp32 = (self._cost_of_whole(base, form) for form in ("int8", "fp32"))
        if int8 is None or fp32 is None:
            return ("fp32",) if int8 is None else ("int8",)
        if base is not None:
            return ("int8",) if int8 < fp32 else ("fp32",)
        return ("int8", "fp32") if int8 < fp32 else ("fp32",)

    def _find_damage(self, base: Candidate | None) -> Outcome:
        setup = self.setup
        parent, label = (base.model, base.name) if base and base.model else (setup.teacher, "")
        spec = self._allocation((0.5,), "fp32")
        return self.tally.count(find_damage(setup.job, spec, data=setup.data, parent=parent, label=label))

    def _allocate(self, base: Candidate | None, form: str, targets: tuple[float, ...]) -> Outcome:
        setup = self.setup
        parent = base.model if base and base.model else setup.teacher
        label = f"{base.name}-{form}" if base else form
        return allocate(setup.job, self._allocation(targets, form), data=setup.data, parent=parent, label=label)

    def _allocation(self, targets: tuple[float, ...], form: str) -> AllocateSpec:
        setup = self.setup
        return AllocateSpec(
            targets=targets,
            objective="size" if setup.by_size else "both",
            rows=int(min(_MOST_ROWS, max(_FEWEST_ROWS, _ROWS_A_MINUTE * setup.settings.minutes))),
            kind="int8" if form == "int8" else "fp32",
            batch=setup.spec.measure.batch,
            threads=setup.spec.export.threads,
            round_to=setup.pruning.round_to,
            seconds=_table_seconds(setup),
        )

    def _cost_of_whole(self, base: Candidate | None, form: str) -> float | None:
        file = self._whole(base, form)
        return None if file is None else self.appraisal.cost(file)

    def _whole(self, base: Candidate | None, form: str) -> Measurement | Clocked | None:
        """The network's cheapest file of this form before it is narrowed; None where it has no such file.

        With objective size any quantized file will do, else the whole one. Where size counts as well, fp32 is kept in
        int8 weights.
        """
        network = base or self.tally.candidates[0]
        if base is None:
            files: Sequence[Measurement | Clocked] = network.forms
            whole = self.appraisal.baseline.digest
        else:
            files, whole = base.clocked, base.clocked[0].digest
        if form == "fp32":
            packed = self.setup.spec.objective in ("both", "front")
            kept = {whole, *(network.by_method("weights8") if packed else ())}
            wanted = [f for f in files if f.digest in kept]
        else:
            quantized = [f for f in files if f.digest != whole]
            wanted = [f for f in quantized if f.digest in network.by_method("static")]
            if self.setup.by_size:
                wanted = wanted or quantized or list(files)
        return min(wanted, key=self.appraisal.cost, default=None)


def planning_seconds(setup: SearchSetup) -> float:
    """What timing layers takes, and as long again for everything else before the first training, about."""
    return 2 * _tables(setup) * _table_seconds(setup) if setup.settings.shrink != () else 0.0


def _tables(setup: SearchSetup) -> int:
    bases = _MOST_CUTS if setup.settings.students is None else len(setup.settings.students)
    return (1 if setup.by_size else 2) + bases


def _table_seconds(setup: SearchSetup) -> float:
    least, most = _TABLE_SECONDS
    return min(most, max(least, _TIMING * 60 * setup.settings.minutes / _tables(setup)))
