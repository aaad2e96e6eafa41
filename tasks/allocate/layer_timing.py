"""How long small graphs take in ONNX Runtime, timed in turn so that a slow moment of the machine hits all alike."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import onnxruntime

_RUNS = 3
"""Timed runs each turn, after one that brings weights and code back into the caches."""
_DTYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}


def time_in_turn(graphs: list[bytes], *, batch: int, threads: int, seconds: float, rounds: int = 30) -> list[float]:
    """Median milliseconds of one run of each graph (input ``x`` [batch, ...], output ``y``).

    Args:
        batch: samples per run.
        threads: of each run; sessions are set up as the endpoint's are (see serving/engine.py).
        seconds: no further round begins after this time, building included; three rounds are always made.
        rounds: the most that are made.
    """
    deadline = time.monotonic() + seconds
    runs = [_Run(graph, batch, threads) for graph in graphs]
    taken: list[list[int]] = [[] for _ in graphs]
    for round_number in range(rounds):
        if round_number >= 3 and time.monotonic() > deadline:
            break
        for run, times in zip(runs, taken, strict=True):
            run()
            for _ in range(_RUNS):
                started = time.perf_counter_ns()
                run()
                times.append(time.perf_counter_ns() - started)
    return [float(np.median(times)) / 1e6 for times in taken]


class _Run:
    """A session with its input and output in place: nothing is copied."""

    def __init__(self, graph: bytes, batch: int, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session: Any = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        (given,) = self._session.get_inputs()
        x = np.random.default_rng(0).uniform(0, 100, (batch, *given.shape[1:])).astype(_DTYPES[given.type])
        self._binding = self._session.io_binding()
        self._binding.bind_cpu_input("x", x)
        self._binding.bind_output("y", "cpu")
        self()  # allocates, and is the warm-up

    def __call__(self) -> None:
        self._session.run_with_iobinding(self._binding)
