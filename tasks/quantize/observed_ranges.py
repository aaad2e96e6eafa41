"""Ranges of activations, observed batch by batch: what batches show adds up exactly, however they are shared out.

First the smallest and largest value of each tensor, then, for methods that need one, a histogram whose edges follow
from these. Extremes and counts are the same whoever takes them and in which order, so any number of workers writes the
same file. ONNX Runtime 1.31's calibrators find the same ranges, and hold the activations of all rows until they do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationMethod
from onnxruntime.quantization.calibrate import HistogramCollector, TensorsData, create_calibrator, save_tensors_data

from tasks.quantize.calibration import Feeds, RowReader

RANGES = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}
"""Ways of finding ranges. ``percentile``: the share of the absolute values that lies within. ``entropy``: of all ranges
around 0 the one whose 8-bit histogram tells least apart from the whole one (Migacz 2017, "8-bit inference with
TensorRT")."""
_BINS = {"percentile": 2048, "entropy": 1024}
"""ONNX Runtime counts into 128 for ``entropy``, which leaves one range to choose: minmax."""
_LEVELS = 256
_Seen = TypeVar("_Seen")


class _Extremes(NamedTuple):
    low: Any
    high: Any
    smallest: Any
    """Absolute value."""


def write_ranges(
    model: Path,
    operators: list[str],
    reader: RowReader,
    ranges: Path,
    *,
    method: str,
    percentile: float,
    workers: int | None = None,
) -> None:
    """Write ``ranges``, which ``quantize_static`` reads as its ``calibration_cache_path``.

    Args:
        model: the file of the prepared model.
        operators: types whose inputs and outputs are observed, the ones that will be quantized.
        reader: the rows; memory holds the activations of 16 for each worker.
        method: one of RANGES. ``percentile``: from 0 to 100.
        workers: threads, each computing on its own; None: one for each core. The file does not depend on them.
    """
    observed = _Observed(model, operators, ranges.with_suffix(".augmented.onnx"), reader)
    workers = workers or len(os.sched_getaffinity(0))
    extremes = dict[str, _Extremes]()
    for name, seen in observed.each(_extremes, workers):
        past = extremes.get(name, seen)
        low, smallest = np.fmin(past.low, seen.low), np.fmin(past.smallest, seen.smallest)
        extremes[name] = _Extremes(low, np.fmax(past.high, seen.high), smallest)
    if method == "minmax":
        found: dict[str, Any] = {name: (np.array([e.low]), np.array([e.high])) for name, e in extremes.items()}
    else:
        collector = HistogramCollector(method, method == "percentile", _BINS[method], _LEVELS, percentile, "same")
        counts = collector.histogram_dict
        for name, (hist, edges) in observed.each(lambda n, v: _histogram(v, extremes[n], method), workers):
            low, high, _ = extremes[name]
            total = hist + counts[name][0] if name in counts else hist
            counts[name] = (total, edges, low, high, _farthest(extremes[name]))
        found = collector.compute_collection_result()
    save_tensors_data(TensorsData(RANGES[method], found), ranges)


class _Observed:
    """The tensors that will be quantized, as batches of rows make them."""

    def __init__(self, model: Path, operators: list[str], augmented: Path, reader: RowReader) -> None:
        calibrator = create_calibrator(
            model, operators, augmented_model_path=str(augmented), calibrate_method=CalibrationMethod.Entropy
        )
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1  # a batch is one worker's, so that bits do not depend on the cores
        self._session = onnxruntime.InferenceSession(str(augmented), options, providers=["CPUExecutionProvider"])
        self._names: list[str] = sorted(calibrator.tensors_to_calibrate)
        reader.rewind()
        self._batches: list[Feeds] = list(iter(reader.get_next, None))

    def each(self, look: Callable[[str, NDArray[Any]], _Seen], workers: int) -> Iterator[tuple[str, _Seen]]:
        """What a look at each tensor of each batch shows, batch after batch."""

        def observe(batch: Feeds) -> list[tuple[str, _Seen]]:
            made = zip(self._names, self._session.run(self._names, batch), strict=True)
            return [(name, look(name, values)) for name, values in made if values.size]

        with ThreadPoolExecutor(workers) as pool:
            for found in pool.map(observe, self._batches):
                yield from found


def _extremes(_: str, values: NDArray[Any]) -> _Extremes:
    return _Extremes(np.nanmin(values), np.nanmax(values), np.nanmin(np.abs(values)))


def _farthest(extremes: _Extremes) -> NDArray[Any]:
    """The largest absolute value."""
    return np.array(max(abs(extremes.low), abs(extremes.high)), dtype=extremes.low.dtype)


def _histogram(values: NDArray[Any], extremes: _Extremes, method: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Counts and edges: of absolute values for ``percentile``, else on both sides of 0."""
    end, absolute = _farthest(extremes), method == "percentile"
    around: Any = (extremes.smallest, end) if absolute else (-end, end)
    hist, edges = np.histogram(np.abs(values) if absolute else values, _BINS[method], range=around)
    return hist, edges.astype(values.dtype)
