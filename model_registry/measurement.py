"""What was measured of a variant, and where: a record of its own, because it depends on machine, data and baseline."""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

from pydantic import Field, model_validator

from model_registry.manifest import FileEntry, canonical_json
from model_registry.variant import Frozen, Record

Interval = tuple[float, float]
"""A 95 % interval: lower and upper end."""

Objective = Literal["both", "latency", "size", "throughput", "front"]
"""What counts among variants that are good enough; ``both``: latency and size, as their geometric mean; ``front``:
every one that no other beats at accuracy, latency and size."""

Better = Literal["higher", "lower"]
Verdict = Literal["faster", "slower", "not distinguishable"]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

CPU_SECONDS_SAMPLES = 1000
"""``cpu_seconds`` is the CPU time (user and system, all threads) of this many samples."""


class Hardware(Frozen):
    """The machine and the versions a number was measured with; numbers of two machines are not compared."""

    cpu: str
    """Model name as the kernel gives it."""
    cores: int = Field(ge=1)
    """Logical CPUs this process may use."""
    cpu_class: str
    """Class by instruction set, e.g. ``x86-avx2`` or ``x86-vnni``; int8 kernels and their results depend on it."""
    memory_bytes: int = Field(default=0, ge=0)
    python: str = ""
    onnxruntime: str = ""

    @property
    def key(self) -> str:
        """Short stable name of this machine and its versions, used in storage keys."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json"))).hexdigest()[:16]


class MetricEstimate(Frozen):
    """Mean of the workload's per-sample scores over a split, with its 95 % interval."""

    name: str
    better: Better
    value: float
    interval: Interval


class PairedComparison(Frozen):
    """A variant against a reference on the same samples; positive differences mean that it is better."""

    reference: str
    """Digest of the variant it is compared with."""
    samples: int = Field(ge=1)
    better: int = Field(ge=0)
    """Samples on which the variant scores better than the reference."""
    worse: int = Field(ge=0)
    better_indices: tuple[int, ...] = ()
    """Row numbers in the split (the first few hundred), so that a person can look at them."""
    worse_indices: tuple[int, ...] = ()
    difference: float
    """Mean of (variant - reference), sign turned so that positive is better."""
    interval: Interval
    """Two-sided 95 % interval of ``difference``."""
    bound: float
    """One-sided 95 % upper bound of the loss (-difference): the variant is non-inferior within a margin above this."""
    p: float = Field(ge=0, le=1)
    """Two-sided p value of 'no difference'."""
    test: Literal["mcnemar", "bootstrap"]


class ClassLoss(Frozen):
    """What a variant loses against the baseline within one class."""

    samples: int = Field(ge=1)
    loss: float
    """Mean of (baseline - variant), sign turned so that positive is worse."""
    shown: float
    """So much is lost at least: lower end of a one-sided 95 % interval, corrected for the number of classes."""


class Throughput(Frozen):
    """Samples per second at the measured batch size."""

    value: float
    interval: Interval


class LatencyIntervals(Frozen):
    """95 % intervals of the latency quantiles, in milliseconds."""

    p50: Interval
    p95: Interval


class Speedup(Frozen):
    """Baseline latency divided by this variant's, from interleaved rounds; above 1 is faster."""

    value: float
    interval: Interval
    verdict: Verdict


class Clocked(Frozen):
    """Size and speed of a file, whatever its weights are worth: interleaved with the baseline, nothing predicted."""

    digest: Digest
    name: str
    bytes: int = Field(ge=0)
    batch: int = Field(ge=1)
    p50_ms: float
    p95_ms: float
    throughput: Throughput
    speedup: Speedup

    tail_share: float = Field(gt=0)
    """As :attr:`Measurement.tail_share`."""
    luts: int | None = None
    """As :attr:`Measurement.luts`."""

    @property
    def latency_share(self) -> tuple[float, Interval]:
        """As :attr:`Measurement.latency_share`."""
        return _share(self.speedup)

    def p95_beside(self, baseline: Measurement) -> float:
        """As :meth:`Measurement.p95_beside`."""
        return self.tail_share * baseline.p95_ms


class TokenSpeed(Frozen):
    """How fast a model continues a text, by the loop that serves, in turns with the baseline; intervals 95 %.

    A text that is alone is computed beside a second one (see :mod:`serving.decoding.token_session`), so two at a time
    get as many tokens each.
    """

    prompt_tokens: int = Field(ge=1)
    """Of the prompts that were read: as long as a row of the data, where the context holds it and the answer."""
    new_tokens: int = Field(ge=1)
    """Of each answer, after the first one."""
    prefill: Throughput
    """Tokens of a prompt per second."""
    decode: Throughput
    """Tokens of one answer per second, after the first one."""
    ttft_ms: float
    """From a prompt to the first token of its answer, in milliseconds: the median."""
    ttft_interval: Interval
    prefill_speedup: Speedup | None = None
    """Against the baseline; None for the baseline itself."""
    decode_speedup: Speedup | None = None

    def decode_beside(self, baseline: TokenSpeed) -> float:
        """Tokens per second as a limit looks at them: the baseline's own, times the speed-up in turns with it."""
        return self.decode.value if self.decode_speedup is None else baseline.decode.value * self.decode_speedup.value

    def ttft_beside(self, baseline: TokenSpeed) -> float:
        """Milliseconds to the first token, likewise."""
        return self.ttft_ms if self.prefill_speedup is None else baseline.ttft_ms / self.prefill_speedup.value


class Measurement(Record):
    """All numbers of one variant on one split and one machine."""

    digest: Digest
    """The variant measured."""
    baseline: Digest
    """The variant it is compared with (the teacher, exported fp32); the baseline's own measurement names itself."""
    name: str
    """Label of the variant, for people."""
    stage: str
    split: str
    samples: int = Field(ge=1)
    data: str
    """Fingerprint of the data."""
    hardware: Hardware
    threads: int = Field(ge=1)
    batch: int = Field(ge=1)
    predict_batch: int = Field(default=1, ge=1)
    """Samples per run when the split was predicted: a model may take an int8 scale from the whole batch it sees."""

    metric: MetricEstimate
    accuracy: float | None = None
    """Share of right answers, for classifiers whatever the metric; None elsewhere."""
    bits_per_byte: float | None = None
    """What a byte of text costs; None for models that do not continue text."""
    token_speed: TokenSpeed | None = None
    """How fast it continues text; None likewise."""
    per_class: dict[str, MetricEstimate] = Field(default_factory=dict)
    """The metric within each true class, by label."""
    paired: PairedComparison | None = None
    """Against the baseline; None for the baseline itself."""
    class_losses: dict[str, ClassLoss] = Field(default_factory=dict)
    """Against the baseline within each true class, by label; empty for the baseline itself."""

    requests: int = Field(default=0, ge=0)
    """Requests that were timed; 0 in records of before."""
    p50_ms: float
    """Median latency of one request of ``batch`` samples, in milliseconds."""
    p95_ms: float
    tail_share: float | None = Field(default=None, gt=0)
    """95th percentile over that of the baseline in the same interleaved rounds; None for the baseline itself, and in
    records of before."""
    latency_interval: LatencyIntervals
    throughput: Throughput
    speedup: Speedup | None = None
    """Against the baseline; None for the baseline itself."""
    peak_rss_bytes: int = Field(ge=0)
    """Peak resident memory of a process that holds the serving engine and this one variant."""
    cpu_seconds: float = Field(ge=0)
    """CPU seconds per 1000 samples; of texts as long as they are, not as long as the model takes them."""

    bytes: int = Field(ge=0)
    """Size of the model file."""
    parameters: int = Field(ge=0)
    macs: int | None = None
    """Multiply-accumulates for one sample; None where the graph cannot be counted."""
    luts: int | None = None
    """Look-up tables of an FPGA, about; None where nobody asked, and for files that no FPGA takes as they are."""
    predictions: FileEntry
    """npz (no pickle) of the outputs on the split, one row per sample in the split's order."""
    scores: FileEntry
    """npz with one array ``score``: the metric's score of each sample, what paired comparisons are made of."""

    @model_validator(mode="after")
    def _compared_with_something(self) -> Measurement:
        if self.digest != self.baseline and (self.paired is None or self.speedup is None):
            raise ValueError(f"measurement of {self.name!r} names a baseline but holds no comparison with it")
        return self

    @property
    def latency_share(self) -> tuple[float, Interval]:
        """Latency as a share of the baseline's, with its 95 % interval; below 1 is faster.

        From interleaved rounds, so that variants which were measured at different times can be ordered by it: their
        medians in milliseconds also differ by what else the machine did. The baseline's own share is 1.
        """
        return _share(self.speedup) if self.speedup else (1.0, (1.0, 1.0))

    def p95_beside(self, baseline: Measurement) -> float:
        """95th percentile in milliseconds as a limit looks at it: the baseline's own, times this one's share of it.

        An absolute number of one moment says as much about what else the machine did then.
        """
        return self.p95_ms if self.tail_share is None else self.tail_share * baseline.p95_ms

    @property
    def key(self) -> str:
        """Record key: ``measurements/<digest>/<machine>/<key>.json``."""
        conditions = {"baseline": self.baseline, "split": self.split, "data": self.data, "threads": self.threads}
        batches = {"batch": self.batch, "predict_batch": self.predict_batch}
        short = hashlib.sha256(canonical_json(conditions | batches)).hexdigest()[:16]
        return f"measurements/{self.digest}/{self.hardware.key}/{short}.json"


def _share(speedup: Speedup) -> tuple[float, Interval]:
    low, high = speedup.interval
    return 1.0 / speedup.value, (1.0 / high, 1.0 / low)
