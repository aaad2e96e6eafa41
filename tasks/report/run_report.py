"""The report of a run as a value: what report.json holds, what ``runs/<id>.json`` stores, what the pages show."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

from pydantic import AwareDatetime, Field

from model_registry.measurement import (
    Better,
    Hardware,
    Interval,
    LatencyIntervals,
    Measurement,
    MetricEstimate,
    PairedComparison,
    Speedup,
    TokenSpeed,
)
from model_registry.owner import Owner
from model_registry.store import Store
from model_registry.target_form import TargetForm
from model_registry.variant import Frozen, Record
from tasks.evidence.continuations import Continuations
from tasks.evidence.decision import Decision
from tasks.evidence.pareto import pareto_digests
from tasks.evidence.search_summary import SearchSummary
from tasks.report.chosen_layers import ChosenLayers

Status = Literal["running", "released", "registered", "refused", "failed", "interrupted", "crashed"]
"""``released``: it answers at the endpoint; ``registered``: deployment was switched off; ``refused``: by the gates."""


class MetricName(Frozen):
    name: str
    better: Better


class StageLine(Frozen):
    """One stage of the run, in the order in which they ran."""

    name: str
    status: Literal["computed", "reused", "skipped", "failed"]
    seconds: float
    compute_seconds: float = 0.0
    """The part spent in the stage's own process; the rest is orchestration."""
    reason: str = ""
    host: str = ""
    """Where it was computed in this run."""


class MetricValue(Frozen):
    value: float
    interval: Interval


class VariantRow(Frozen):
    """One measured variant. Numbers are of the validation split and of ``hardware``."""

    name: str
    stage: str
    digest: str
    parents: tuple[str, ...] = ()
    bytes: int
    metric: MetricValue
    bits_per_byte: float | None = None
    """Of texts, where the model continues some."""
    token_speed: TokenSpeed | None = None
    accuracy: float | None
    p50_ms: float
    p95_ms: float
    latency_interval: LatencyIntervals
    throughput: float
    throughput_interval: Interval
    peak_rss_bytes: int
    cpu_seconds: float
    """Per 1000 samples."""
    parameters: int
    macs: int | None
    speedup: Speedup | None = None
    paired: PairedComparison | None = None
    per_class: dict[str, MetricValue] = Field(default_factory=dict)
    pareto: bool = False
    control: bool = False
    """Trained without the teacher, or made of what was: to compare with, never released."""


class RunError(Frozen):
    """Why a run failed, and what to do."""

    stage: str
    type: str
    message: str
    log: str | None = None
    resume: str | None = None
    """The command that continues the run."""


class Conditions(Frozen):
    """Under which conditions the numbers were taken."""

    split: str
    samples: int
    threads: int
    batch: int
    data: str
    requests: int = 0
    """Timed of each variant at least; 0 in reports of before."""


class RunReport(Record):
    """A run, finished or not. Later versions may add fields; they never change the meaning of these."""

    run_id: str
    status: Status
    model: str
    version: int | None = None
    front: dict[str, int] = Field(default_factory=dict)
    """Versions by digest of all variants that were proven together, with objective front; else empty."""
    endpoint: str | None = None
    baseline: str | None = None
    chosen: str | None = None
    champion: str | None = None
    """Digest of the champion that the chosen variant was compared with."""
    hardware: Hardware | None = None
    conditions: Conditions | None = None
    metric: MetricName | None = None
    stages: tuple[StageLine, ...] = ()
    variants: tuple[VariantRow, ...] = ()
    decision: Decision | None = None
    search: SearchSummary | None = None
    """What a search tried and why it ended; None where the spec gave the ratios."""
    layers: ChosenLayers | None = None
    """What became of the chosen variant's layers; None where nothing was pruned or quantized."""
    continuations: Continuations | None = None
    """What the chosen language model and the baseline say after the same beginnings; None elsewhere."""
    targets: tuple[TargetForm, ...] = ()
    """The chosen variant in the forms that other machines run."""
    error: RunError | None = None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What else is worth a sentence, for example what distillation gained over the control."""
    links: dict[str, str] = Field(default_factory=dict)
    """Name to URL: ``prefect``, ``mlflow``, ``data docs``."""
    curl: str | None = None
    """A command line that asks the endpoint for a prediction."""
    started: AwareDatetime
    seconds: float = 0.0
    git_commit: str | None = None
    spec: dict[str, Any] = Field(default_factory=dict)
    prefect_run: str | None = None
    """Id of the Prefect flow run."""
    owner: Owner | None = None
    """The process of the run; one that died without a word is shown as crashed."""

    @property
    def hosts(self) -> tuple[str, ...]:
        """Where stages of this run were computed, in the order in which each was first at work."""
        return tuple(dict.fromkeys(line.host for line in self.stages if line.host))

    @property
    def state(self) -> Status:
        """``status``, but a running run whose process is gone has crashed."""
        dead = self.status == "running" and self.owner is not None and self.owner.provably_dead()
        return "crashed" if dead else self.status

    def row(self, digest: str | None) -> VariantRow | None:
        """The variant of that digest, or None."""
        return next((v for v in self.variants if v.digest == digest), None)


def describe_variants(
    measurements: Iterable[Measurement],
    parents: Mapping[str, tuple[str, ...]] | None = None,
    controls: Collection[str] = (),
) -> dict[str, Any]:
    """The fields of a RunReport that follow from the measurements: hardware, conditions, metric, variants.

    Args:
        measurements: in the order of the table, the baseline first.
        parents: digests of what each variant was made from, by its digest.
        controls: digests of those that learned without the teacher.
    """
    measured = list(measurements)
    if not measured:
        return {}
    first, front, parents = measured[0], pareto_digests(measured), parents or {}
    return {
        "baseline": first.baseline,
        "hardware": first.hardware,
        "conditions": Conditions(
            split=first.split,
            samples=first.samples,
            threads=first.threads,
            batch=first.batch,
            data=first.data,
            requests=min(m.requests for m in measured),
        ),
        "metric": MetricName(name=first.metric.name, better=first.metric.better),
        "variants": tuple(
            _row(m, parents.get(m.digest, ()), pareto=m.digest in front, control=m.digest in controls) for m in measured
        ),
    }


def save_run(store: Store, report: RunReport) -> None:
    """Write or overwrite the run's record, ``runs/<id>.json``."""
    store.write_record(f"runs/{report.run_id}.json", report.to_json())


def load_run(store: Store, run_id: str) -> RunReport | None:
    """The run's record; None where there is none."""
    data = store.read_record(f"runs/{run_id}.json")
    return None if data is None else RunReport.from_json(data)


def _row(m: Measurement, parents: tuple[str, ...], *, pareto: bool, control: bool) -> VariantRow:
    return VariantRow(
        name=m.name,
        stage=m.stage,
        digest=m.digest,
        parents=parents,
        bytes=m.bytes,
        metric=_value(m.metric),
        bits_per_byte=m.bits_per_byte,
        token_speed=m.token_speed,
        accuracy=m.accuracy,
        p50_ms=m.p50_ms,
        p95_ms=m.p95_ms,
        latency_interval=m.latency_interval,
        throughput=m.throughput.value,
        throughput_interval=m.throughput.interval,
        peak_rss_bytes=m.peak_rss_bytes,
        cpu_seconds=m.cpu_seconds,
        parameters=m.parameters,
        macs=m.macs,
        speedup=m.speedup,
        paired=m.paired,
        per_class={label: _value(metric) for label, metric in m.per_class.items()},
        pareto=pareto,
        control=control,
    )


def _value(metric: MetricEstimate) -> MetricValue:
    return MetricValue(value=metric.value, interval=metric.interval)
