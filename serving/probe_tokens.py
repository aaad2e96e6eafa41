"""How a variant continues texts, by the loop that serves it: how fast against its baseline, and what it says."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from model_registry.measurement import Throughput, TokenSpeed
from serving.decoding.generation_order import GenerationOrder
from serving.decoding.token_loop import TokenLoop
from serving.engines.engine_frames import PART, Asked
from serving.exceptions import EngineRunError
from serving.limits import GenerationBounds
from serving.probe_latency import RESAMPLES, Floats, median_interval, median_speedup

NEW_TOKENS = 16
"""Of each timed answer after the first one; in a context of few tokens a quarter of them."""
FEWEST_ROUNDS = 5
TIMED = GenerationBounds(slots=1, prefix_bytes=0)
"""A text alone, of whose prompt nothing was kept."""


def time_loops(
    variant: TokenLoop,
    baseline: TokenLoop | None,
    prompts: Sequence[Sequence[int]],
    *,
    rounds: int,
    seconds: float,
    seed: int,
) -> TokenSpeed:
    """Read a prompt and continue it, by both in turns; each round has its own random order.

    Args:
        variant, baseline: loops within :data:`TIMED`; no baseline where the variant is its own.
        prompts: tokens, of equal lengths; used in turn, cut to what the context holds beside the answer.
        rounds: at most, and five at least.
        seconds: for all rounds together, about; they are fewer where the slower of both needs longer.
        seed: of the order and of the bootstrap.

    Raises:
        EngineRunError: the model fails on a prompt.
    """
    context = variant.limits.context
    new = min(NEW_TOKENS, max(3, context // 4))
    cut = [list(prompt[: context - new - 1]) for prompt in prompts]
    loops = [variant] if baseline is None else [variant, baseline]
    warm = [_timed(loop, cut[0], new) for loop in loops]  # the first answers take longer
    slowest = max(first + new * step for first, step in warm)
    rounds = max(FEWEST_ROUNDS, min(rounds, int(seconds / (len(loops) * slowest))))
    rng, times = np.random.default_rng(seed), np.empty((len(loops), rounds, 2))
    for turn in range(rounds):
        for which in rng.permutation(len(loops)):
            times[which, turn] = _timed(loops[which], cut[turn % len(cut)], new)
    draws = rng.integers(0, rounds, size=(RESAMPLES, rounds))
    first, step = times[0].T
    return TokenSpeed(
        prompt_tokens=len(cut[0]),
        new_tokens=new,
        prefill=_per_second(len(cut[0]) / first, draws),
        decode=_per_second(1 / step, draws),
        ttft_ms=float(np.median(first) * 1e3),
        ttft_interval=median_interval(first * 1e3, draws),
        prefill_speedup=None if baseline is None else median_speedup(times[1, :, 0] / first, draws),
        decode_speedup=None if baseline is None else median_speedup(times[1, :, 1] / step, draws),
    )


def continue_greedily(loop: TokenLoop, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[tuple[int, ...]]]:
    """What the loop says after each prompt when it always takes the likeliest token: the bytes of each.

    Args:
        prompts: tokens; as many as may wait, 64. ``tokens``: of each answer, at most; fewer where the model ends it.

    Raises:
        EngineRunError: the model fails on a prompt.
    """
    said: list[list[tuple[int, ...]]] = [[] for _ in prompts]
    for number, prompt in enumerate(prompts):
        _ask(loop, number, GenerationOrder(prompt=tuple(prompt), max_tokens=tokens, temperature=0.0, logprobs=0))
    while not loop.idle:
        for number, part in _turn(loop):
            said[number] += [tuple(token["bytes"]) for token in part["tokens"]]
    return said


def _timed(loop: TokenLoop, prompt: Sequence[int], new: int) -> tuple[float, float]:
    """Seconds until the loop says the first token of an answer of ``new`` more, and those of each token after that."""
    order = GenerationOrder(prompt=tuple(prompt), max_tokens=new + 1, temperature=0.0, ignore_end=True)
    began = time.perf_counter()
    _ask(loop, 0, order)
    made, first, then = 0, 0, began
    while not loop.idle:
        for _, part in _turn(loop):
            made = part["completion_tokens"]
        if made and not first:  # a turn that has read a prompt also takes a step, and says both tokens together
            first, then = made, time.perf_counter()
    return then - began, (time.perf_counter() - then) / (made - first)


def _ask(loop: TokenLoop, number: int, order: GenerationOrder) -> None:
    refused = loop.ask(Asked(number, orjson.dumps(order.model_dump(mode="json")), -1, 0, 0.0))
    if refused is not None:
        raise EngineRunError(f"prompt {number} is refused: {orjson.loads(refused.body)['error']}")


def _turn(loop: TokenLoop) -> Iterator[tuple[int, dict[str, Any]]]:
    """Request numbers with what was said of each."""
    for answered in loop.turn():
        said = orjson.loads(answered.body)
        if answered.status not in (PART, 200):
            raise EngineRunError(f"prompt {answered.number}: {said['error']}")
        yield answered.number, said


def _per_second(rates: Floats, draws: NDArray[np.int64]) -> Throughput:
    return Throughput(value=float(np.median(rates)), interval=median_interval(rates, draws))
