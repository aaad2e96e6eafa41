"""Latency of a variant against its baseline, interleaved, with intervals.

Two runs one after the other mostly compare the machine's mood then and now. So blocks of requests alternate, in an
order drawn for each round; each block gives one median and one throughput. The 95th percentile is that of all requests
together: that of a block of a few says what the slowest of a few takes. The intervals are a bootstrap over rounds,
which keeps the correlation within a round.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from model_registry.measurement import Interval, LatencyIntervals, Speedup, Throughput, Verdict
from model_registry.variant import Frozen
from serving.engine import Engine
from serving.tensors import Array

RESAMPLES = 2000
TAIL_RESAMPLES = 400
"""For the 95th percentile, each of which sorts all requests."""
MIN_REQUESTS = 3
# Differences below this are within what memory layout alone does (Mytkowicz et al., ASPLOS 2009).
NOISE = 0.01
Floats = npt.NDArray[np.float64]


class Runnable(Protocol):
    """What is timed: an engine, or a stand-in in tests."""

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]: ...


class ModelAlone:
    """An engine that is asked for the graph's own outputs.

    ``label`` and ``probability`` are made of them outside ONNX Runtime and cost every variant the same: 29 us a request
    of 16 rows (EPYC with AVX2), which in networks of 30 us would hide what is compared.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

        self.variant = engine.variant

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        return self._engine.run(inputs, self._engine.graph_outputs)


class NotEnoughCpus(Exception):
    """More threads were asked for than CPUs this process may use. Ask for fewer threads."""


class EngineTiming(Frozen):
    """Latency and throughput of one engine, intervals 95 %; medians over blocks, but for the 95th percentile, which is
    that of all ``requests``."""

    requests: int
    p50_ms: float
    p95_ms: float
    latency_interval: LatencyIntervals
    throughput: Throughput


class Comparison(Frozen):
    """Two engines timed in turns."""

    variant: EngineTiming
    baseline: EngineTiming
    speedup: Speedup | None
    """Baseline's median latency over the variant's; None where both are one and the same."""
    tail_share: float | None
    """Variant's 95th percentile over the baseline's; None likewise."""
    rounds: int
    requests_per_block: int
    cpus: tuple[int, ...]


@contextlib.contextmanager
def pinned(threads: int) -> Iterator[tuple[int, ...]]:
    """Pin this thread, and every thread it starts meanwhile, to as many CPUs as there are threads.

    The highest-numbered CPUs are taken: interrupts tend to go to CPU 0.

    Raises:
        NotEnoughCpus: this process may use fewer.
    """
    allowed = os.sched_getaffinity(0)
    if threads > len(allowed):
        raise NotEnoughCpus(f"{threads} threads were asked for, this process may use {len(allowed)} CPUs")
    chosen = tuple(sorted(allowed)[-threads:])
    os.sched_setaffinity(0, chosen)
    try:
        yield chosen
    finally:
        os.sched_setaffinity(0, allowed)


def compare_engines(
    variant: Runnable,
    baseline: Runnable | None,
    requests: list[dict[str, Array]],
    *,
    batch: int,
    rounds: int,
    seconds: float,
    warm_up_seconds: float,
    seed: int,
    least: int = 0,
    cpus: tuple[int, ...] = (),
) -> Comparison:
    """Time both engines on the same requests, in turns.

    Args:
        baseline: None where the variant is its own baseline.
        requests: inputs of ``batch`` samples each, used in turn.
        rounds: blocks per engine.
        seconds: what all blocks together may take, about; a block holds at least three requests.
        least: requests that each engine answers at least, though it takes longer.
        warm_up_seconds: untimed running of each engine before.
        seed: of the order of blocks and of the bootstrap.
    """
    engines = [variant] if baseline is None else [variant, baseline]
    rng = np.random.default_rng(seed)
    blocks = _in_turns(engines, requests, rounds, seconds, warm_up_seconds, rng, least=least)
    draws = rng.integers(0, rounds, size=(RESAMPLES, rounds))
    timings = [_timing(block, batch, draws) for block in blocks]
    medians = [np.median(block, axis=1) for block in blocks]
    return Comparison(
        variant=timings[0],
        baseline=timings[-1],
        speedup=None if baseline is None else median_speedup(medians[1] / medians[0], draws),
        tail_share=None if baseline is None else timings[0].p95_ms / timings[1].p95_ms,
        rounds=rounds,
        requests_per_block=blocks[0].shape[1],
        cpus=cpus,
    )


def compare_many(
    variants: Sequence[Runnable],
    baseline: Runnable,
    requests: list[dict[str, Array]],
    *,
    batch: int,
    rounds: int,
    seconds: float,
    warm_up_seconds: float,
    seed: int,
) -> list[tuple[EngineTiming, Speedup, float]]:
    """Time several engines and the baseline on the same requests, all in turns; arguments as :func:`compare_engines`.

    Returns:
        The timing of each variant, its speed-up over the baseline and its 95th percentile as a share of the baseline's,
        in their order.
    """
    rng = np.random.default_rng(seed)
    *blocks, reference = _in_turns([*variants, baseline], requests, rounds, seconds, warm_up_seconds, rng)
    draws = rng.integers(0, rounds, size=(RESAMPLES, rounds))
    whole, tail = np.median(reference, axis=1), _timing(reference, batch, draws).p95_ms
    timings = [_timing(block, batch, draws) for block in blocks]
    speedups = [median_speedup(whole / np.median(block, axis=1), draws) for block in blocks]
    return [(timing, speedup, timing.p95_ms / tail) for timing, speedup in zip(timings, speedups, strict=True)]


def speedup_verdict(interval: Interval) -> Verdict:
    """What a speed-up's interval allows to say."""
    if interval[0] > 1 + NOISE:
        return "faster"
    return "slower" if interval[1] < 1 - NOISE else "not distinguishable"


def _in_turns(
    engines: Sequence[Runnable],
    requests: list[dict[str, Array]],
    rounds: int,
    seconds: float,
    warm_up_seconds: float,
    rng: np.random.Generator,
    *,
    least: int = 0,
) -> list[Floats]:
    """Seconds of each request of each engine, [rounds, requests per block]; each round has its own random order."""
    slowest = max(_warm_up(engine, requests, warm_up_seconds) for engine in engines)
    count = max(MIN_REQUESTS, math.ceil(least / rounds), int(seconds / (rounds * len(engines)) / slowest))
    blocks = [np.empty((rounds, count)) for _ in engines]
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(rounds):
            for which in rng.permutation(len(engines)):
                blocks[which][turn] = _block(engines[which], requests, count, turn * count)
    finally:
        if collecting:
            gc.enable()
    return blocks


def _warm_up(engine: Runnable, requests: list[dict[str, Array]], seconds: float) -> float:
    """Run for a while; returns the median time of one request, in seconds."""
    end = time.perf_counter() + seconds
    times = list(_block(engine, requests, 2, 0))
    while time.perf_counter() < end:
        times.extend(_block(engine, requests, 1, len(times)))
    return float(np.median(times[len(times) // 2 :]))


def _block(engine: Runnable, requests: list[dict[str, Array]], count: int, first: int) -> Floats:
    """Seconds of each of ``count`` requests, one after the other."""
    times = np.empty(count)
    clock = time.perf_counter_ns
    for i in range(count):
        inputs = requests[(first + i) % len(requests)]
        began = clock()
        engine.run(inputs)
        times[i] = clock() - began
    return times * 1e-9


def _timing(block: Floats, batch: int, draws: npt.NDArray[np.int64]) -> EngineTiming:
    p50 = np.median(block, axis=1) * 1e3
    throughput = block.shape[1] * batch / block.sum(axis=1)
    return EngineTiming(
        requests=block.size,
        p50_ms=float(np.median(p50)),
        p95_ms=float(np.percentile(block, 95) * 1e3),
        latency_interval=LatencyIntervals(p50=median_interval(p50, draws), p95=_tail_interval(block * 1e3, draws)),
        throughput=Throughput(value=float(np.median(throughput)), interval=median_interval(throughput, draws)),
    )


def median_speedup(ratios: Floats, draws: npt.NDArray[np.int64]) -> Speedup:
    """Of ratios [rounds], baseline over variant; ``draws`` [resamples, rounds] are rounds drawn with replacement."""
    interval = median_interval(ratios, draws)
    return Speedup(value=float(np.median(ratios)), interval=interval, verdict=speedup_verdict(interval))


def median_interval(values: Floats, draws: npt.NDArray[np.int64]) -> Interval:
    """Percentile bootstrap of the median over rounds (Efron and Tibshirani 1993, chapter 13)."""
    low, high = np.percentile(np.median(values[draws], axis=1), [2.5, 97.5])
    return float(low), float(high)


def _tail_interval(block: Floats, draws: npt.NDArray[np.int64]) -> Interval:
    """Percentile bootstrap, over rounds, of the 95th percentile of all requests."""
    tails = [np.percentile(block[rounds], 95) for rounds in draws[:TAIL_RESAMPLES]]
    low, high = np.percentile(tails, [2.5, 97.5])
    return float(low), float(high)
