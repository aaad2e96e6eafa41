"""Predictions, CPU time and peak memory of one variant in a process that holds nothing else.

``python -m serving.probe_resources`` answers as :mod:`model_registry.answering` says, with :func:`run`. Started ahead
it imports the engine and waits with nothing loaded; whoever measures memory asks each process once.
"""

from __future__ import annotations

import resource
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from model_registry.answering import answer_requests
from model_registry.recording import MAX_ROWS
from model_registry.variant import Variant
from serving.engine import Engine
from serving.tensors import NUMPY, Array

_ROWS = 256
"""Read at a time: opening the files for every sample took longer than a small model's answer."""


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Predict the whole split and account for it.

    Args:
        request: ``folder`` of the files, ``variant``, ``inputs`` (folder with a .npy per input), ``batch``,
            ``seconds`` (the split is predicted again until this has passed), ``outputs`` (the .npy to write).

    Returns:
        ``samples``, ``load_seconds``, ``seconds`` of one pass, ``cpu_seconds`` per pass, ``peak_rss_bytes``,
        ``loaded_rss_bytes``.
    """
    variant = Variant.model_validate(request["variant"])
    began = time.perf_counter()
    engine = Engine(Path(request["folder"]), variant)
    engine.warm_up()
    loaded = time.perf_counter() - began
    loaded_rss = _status("VmRSS")
    files = {spec.name: Path(request["inputs"]) / f"{spec.name}.npy" for spec in engine.inputs}
    samples = len(np.load(next(iter(files.values())), mmap_mode="r", allow_pickle=False))
    end = time.perf_counter() + request["seconds"]
    outputs, wall, cpu = _predict(engine, files, samples, request["batch"])
    walls, cpus = [wall], [cpu]
    while time.perf_counter() < end:
        _, wall, cpu = _predict(engine, files, samples, request["batch"])
        walls.append(wall)
        cpus.append(cpu)
    np.save(request["outputs"], outputs, allow_pickle=False)
    return {
        "samples": samples,
        "load_seconds": loaded,
        "seconds": statistics.median(walls),
        "cpu_seconds": statistics.median(cpus),
        "loaded_rss_bytes": loaded_rss,
        "peak_rss_bytes": _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _predict(engine: Engine, files: dict[str, Path], samples: int, batch: int) -> tuple[Array, float, float]:
    """First output of every sample (float32), wall seconds and CPU seconds (all threads) spent inside the engine.

    Texts of about one length are asked together, filled up no further than the endpoint does.
    """
    first = engine.outputs[0].name
    parts: list[Array] = []
    wall = cpu = 0.0
    held: dict[str, Array] = {}
    block = batch * max(1, _ROWS // batch)
    lengths = None if engine.filling is None else _lengths(engine.filling, files, samples)
    whole = -(-MAX_ROWS // batch) * batch
    order = np.arange(samples) if lengths is None else _by_length(lengths, whole)
    for start in range(0, samples, batch):
        if start % block == 0:
            part = _rows(files, order[start : start + block]).values()
            held = {
                s.name: np.array(rows, dtype=NUMPY[s.datatype]) for s, rows in zip(engine.inputs, part, strict=True)
            }
        inputs = {name: rows[start % block : start % block + batch] for name, rows in held.items()}
        if lengths is not None and start >= whole:
            longest = lengths[order[start : start + batch]].max()
            inputs = {name: rows[:, :longest] for name, rows in inputs.items()}
        wall -= time.perf_counter()
        cpu -= time.process_time()
        found = engine.run(inputs, [first])
        cpu += time.process_time()
        wall += time.perf_counter()
        parts.append(found[first].astype(np.float32))
    outputs = np.concatenate(parts)
    if lengths is not None:
        outputs[order] = outputs.copy()
    return outputs, wall, cpu


def _lengths(filling: tuple[int, int], files: dict[str, Path], samples: int) -> Array:
    """Of each row of ids: as many as a request with it alone would have."""
    (pad, multiple), (file,) = filling, files.values()
    found = []
    for start in range(0, samples, _ROWS):
        content = np.load(file, mmap_mode="r", allow_pickle=False)[start : start + _ROWS] != pad
        places = (content * np.arange(1, content.shape[1] + 1)).max(axis=1)
        found.append(np.minimum(-(-np.maximum(places, 1) // multiple) * multiple, content.shape[1]))
    return np.concatenate(found)


def _by_length(lengths: Array, whole: int) -> Array:
    """All rows, those of one length together; the first ``whole`` stay: they may be recorded, and are asked again as
    they are."""
    return np.concatenate([np.arange(len(lengths))[:whole], whole + np.argsort(lengths[whole:], kind="stable")])


def _rows(files: dict[str, Path], numbers: Array) -> dict[str, Array]:
    # Mapped again each time and never held: the split must not count as the model's memory.
    return {name: np.load(path, mmap_mode="r", allow_pickle=False)[numbers] for name, path in files.items()}


def _status(field: str) -> int:
    """A field of /proc/self/status in bytes; 0 where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)


if __name__ == "__main__":
    answer_requests(run)
