"""What a version did: counted as it happens in plain numbers, shown as Prometheus metrics and as V2 statistics."""

from __future__ import annotations

import bisect
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from serving.decoding.generation_order import GenerationPart
from serving.engines.engine_frames import CHOOSE, EngineWork
from serving.engines.infer_job import InferJob

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper ends of the buckets of times."""
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Upper ends of the buckets of rows per frame."""


class Histogram:
    """Values counted in buckets; ``total``: their sum; ``counts``: of each bucket, the last one without an end."""

    def __init__(self, ends: tuple[float, ...]) -> None:
        self._ends = ends
        self.counts = [0] * (len(ends) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect.bisect_left(self._ends, value)] += 1
        self.total += value

    @property
    def buckets(self) -> list[tuple[str, float]]:
        """Upper ends and cumulated counts, as Prometheus has them."""
        found, count = list[tuple[str, float]](), 0
        for end, number in zip((*map(float, self._ends), "+Inf"), self.counts, strict=True):
            count += number
            found.append((str(end), count))
        return found


class VersionStats:
    """Counters of one version; every request is in ``statuses`` once.

    ``tokens``: of texts that were continued, by kind; ``first_token_seconds``: from a request to its first one.

    ``input_us``, ``run_us``, ``output_us``: microseconds of reading requests, of the model and of writing answers,
    summed over all frames.
    """

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self.request_seconds, self.queue_seconds = Histogram(SECONDS), Histogram(SECONDS)
        self.frame_rows = Histogram(ROWS)
        self.first_token_seconds = Histogram(SECONDS)
        self.tokens: Counter[str] = Counter()
        self.failed_seconds = 0.0
        self.rows = self.runs = self.input_us = self.run_us = self.output_us = 0
        self.last = 0.0
        """Of the last answer, seconds since 1970."""

    def answered(self, jobs: list[tuple[InferJob, int]], work: EngineWork) -> None:
        """An engine answered these, with their statuses."""
        now = time.monotonic()
        for job, status in jobs:
            if status == CHOOSE:  # it is answered by another version, or this one again
                continue
            if job.notes is not None:
                job.notes.worked(job.sent - job.began, work, len(jobs))
            self.statuses[status] += 1
            taken = now - job.began
            if status == 200:
                self.request_seconds.add(taken)
                self.queue_seconds.add(job.sent - job.began)
            else:
                self.failed_seconds += taken
        self.rows, self.runs = self.rows + work.rows, self.runs + work.runs
        self.input_us, self.run_us = self.input_us + work.input_us, self.run_us + work.run_us
        self.output_us += work.output_us
        if work.rows:
            self.frame_rows.add(work.rows)
            self.last = time.time()

    def continued(self, last: GenerationPart) -> None:
        """A text was continued to its end; its last part has the counts."""
        self.tokens.update(
            prompt=last.prompt_tokens,
            cached=last.cached_tokens,
            made=last.completion_tokens,
            accepted=last.accepted_tokens,
            rejected=last.rejected_tokens,
        )

    def read(self, tokens: int) -> None:
        """Texts of so many tokens were made vectors of."""
        self.tokens.update(prompt=tokens)

    def refused(self, status: int) -> None:
        """A request ended without an engine's answer."""
        self.statuses[status] += 1

    @property
    def requests(self) -> int:
        """All that ended, however they did."""
        return sum(self.statuses.values())

    def as_v2(self, model: str, version: str) -> dict[str, Any]:
        """In the form of the statistics extension (Triton); nanoseconds."""
        succeeded = self.statuses[200]
        failed = self.requests - succeeded

        def of(count: int, nanoseconds: float) -> dict[str, int]:
            return {"count": count, "ns": int(nanoseconds)}

        return {
            "name": model,
            "version": version,
            "last_inference": int(1000 * self.last),
            "inference_count": self.rows,
            "execution_count": self.runs,
            "inference_stats": {
                "success": of(succeeded, 1e9 * self.request_seconds.total),
                "fail": of(failed, 1e9 * self.failed_seconds),
                "queue": of(succeeded, 1e9 * self.queue_seconds.total),
                "compute_input": of(succeeded, 1e3 * self.input_us),
                "compute_infer": of(succeeded, 1e3 * self.run_us),
                "compute_output": of(succeeded, 1e3 * self.output_us),
            },
            "batch_stats": [],
        }


LABELS = ("model", "version")


class VersionNow(NamedTuple):
    """A version with what it counted, what waits for it (requests, bytes of their bodies), and its engine processes."""

    model: str
    version: str
    stats: VersionStats
    waiting: int
    waiting_bytes: int
    engines: int


def version_metrics(found: Iterable[VersionNow]) -> Iterator[Metric]:
    """Metric families of these versions."""
    requests = CounterMetricFamily(
        "winnow_requests", "Inference requests by the status of their answer.", labels=(*LABELS, "status")
    )
    rows = CounterMetricFamily("winnow_rows", "Rows that went through the model.", labels=LABELS)
    runs = CounterMetricFamily("winnow_runs", "Runs of the model; rows of several requests go together.", labels=LABELS)
    work = CounterMetricFamily(
        "winnow_compute_seconds",
        "Time of engine processes: input (reading requests), model, output (writing answers).",
        labels=(*LABELS, "part"),
    )
    whole = HistogramMetricFamily("winnow_request_seconds", "From a request's last byte to its answer.", labels=LABELS)
    queue = HistogramMetricFamily("winnow_queue_seconds", "Until an engine got the request.", labels=LABELS)
    batch = HistogramMetricFamily("winnow_batch_rows", "Rows of requests that were run together.", labels=LABELS)
    waiting = GaugeMetricFamily("winnow_waiting_requests", "Requests that no engine has yet.", labels=LABELS)
    held = GaugeMetricFamily("winnow_waiting_bytes", "Bytes of their bodies.", labels=LABELS)
    engines = GaugeMetricFamily("winnow_engines", "Engine processes that can answer.", labels=LABELS)
    tokens = CounterMetricFamily(
        "winnow_tokens",
        "Of texts that were continued: prompt (all of them), cached (of those, not read again), made; and of guessed "
        "ones: accepted (of those made), rejected.",
        labels=(*LABELS, "kind"),
    )
    first = HistogramMetricFamily(
        "winnow_first_token_seconds", "From a request's last byte to the first token of an answer.", labels=LABELS
    )
    families: list[Metric] = [requests, rows, runs, work, whole, queue, batch, waiting, held, engines, tokens, first]
    for model, version, stats, waits, bytes_, running in found:
        labels = [model, version]
        for status, count in sorted(stats.statuses.items()):
            requests.add_metric([*labels, str(status)], count)
        rows.add_metric(labels, stats.rows)
        runs.add_metric(labels, stats.runs)
        for part, microseconds in (("input", stats.input_us), ("model", stats.run_us), ("output", stats.output_us)):
            work.add_metric([*labels, part], microseconds / 1e6)
        for kind, count in stats.tokens.items():
            tokens.add_metric([*labels, kind], count)
        if "made" in stats.tokens:
            first.add_metric(labels, stats.first_token_seconds.buckets, stats.first_token_seconds.total)
        for family, counted in (
            (whole, stats.request_seconds),
            (queue, stats.queue_seconds),
            (batch, stats.frame_rows),
        ):
            family.add_metric(labels, counted.buckets, counted.total)
        waiting.add_metric(labels, waits)
        held.add_metric(labels, bytes_)
        engines.add_metric(labels, running)
    yield from families
