"""The probe: measures a variant with the very engine that serves it, in processes without torch.

Entry ``serving.probe:measure`` of a stage's child process, or alone: ``python -m serving.probe REQUEST RESULT``
(two JSON files; the store comes from the environment).
"""

from __future__ import annotations

import io
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
from pydantic import Field

from model_registry.cpu_class import CPUINFO, cpu_class
from model_registry.manifest import FileEntry
from model_registry.measurement import Hardware, LatencyIntervals, Speedup, Throughput
from model_registry.store import Store
from model_registry.variant import Frozen, TensorSpec, Variant
from serving.engine import Engine
from serving.probe_latency import Timing, compare, pinned
from serving.tensors import NUMPY, Array

PREDICTIONS = "predictions.npz"
MAX_REQUESTS = 64


class ProbeError(Exception):
    """The split does not fit the variant, or the measuring process failed; names what."""


class ProbeRequest(Frozen):
    """What to measure, on what, and how carefully."""

    variant: Variant
    baseline: Variant
    inputs: FileEntry = Field(description="npz in the store: an array per input of the variant, one row per sample")
    batch: int = Field(default=1, ge=1, description="samples per request when latency is measured")
    threads: int = Field(default=1, ge=1, description="intra-op threads, and pinned CPUs, when latency is measured")
    rounds: int = Field(default=30, ge=2, description="blocks of requests per engine")
    seconds: float = Field(default=3.0, ge=0, description="time for all blocks of both engines together, about")
    warm_up_seconds: float = Field(default=0.3, ge=0, description="untimed running of each engine before the blocks")
    predict_batch: int = Field(default=32, ge=1, description="samples per run when the whole split is predicted")
    predict_seconds: float = Field(default=0.5, ge=0, description="the split is predicted again until this has passed")
    seed: int = Field(default=0, ge=0, description="of the order of blocks and of the bootstrap")


class ProbeResult(Frozen):
    """What was measured; fields as in :class:`model_registry.measurement.Measurement`."""

    samples: int
    batch: int
    threads: int
    hardware: Hardware
    predictions: FileEntry
    """npz in the store; its one array ``outputs`` is the first output of every sample, float32, in order."""
    p50_ms: float
    p95_ms: float
    latency_interval: LatencyIntervals
    throughput: Throughput
    baseline_timing: Timing
    speedup: Speedup | None
    """None where variant and baseline are the same."""
    cpu_seconds: float
    """CPU seconds per 1000 samples, all threads, at ``predict_batch``."""
    peak_rss_bytes: int
    loaded_rss_bytes: int
    load_seconds: float
    rounds: int
    requests_per_block: int
    cpus: tuple[int, ...]


class Child(Protocol):
    """What a stage's child process hands to its entry, as far as the probe needs it."""

    extra: dict[str, Any]
    workdir: Path

    @property
    def store(self) -> Store: ...

    def progress(self, fraction: float, text: str) -> None: ...


def measure(child: Child) -> dict[str, Any]:
    """Entry of a stage's child: ``child.extra`` is a ProbeRequest, the answer a ProbeResult, both as plain JSON."""
    request = ProbeRequest.model_validate(child.extra)
    return probe(request, child.store, child.workdir, child.progress).model_dump(mode="json")


def probe(
    request: ProbeRequest, store: Store, workdir: Path, progress: Any = lambda fraction, text: None
) -> ProbeResult:
    """Predict the split in a clean process, then time variant and baseline in turns.

    Raises:
        ProbeError: the split lacks an input or has the wrong shape, or the clean process failed.
        NotEnoughCpus: fewer CPUs than threads.
        EngineLoadError, CpuClassMismatch, ManifestMismatch: as :class:`serving.engine.Engine`.
    """
    progress(0.0, f"fetching {request.variant.name}")
    folder = store.materialise(request.variant.files, workdir / "variant")
    arrays = _inputs(store, request.inputs, request.variant.inputs)
    progress(0.1, f"predicting {request.variant.name}")
    outputs, found = _clean_process(request, folder, arrays, workdir)
    progress(0.5, f"timing {request.variant.name} against {request.baseline.name}")
    requests = _requests(arrays, request.batch)
    same = request.variant.digest == request.baseline.digest
    with pinned(request.threads) as cpus:
        baseline = None
        if not same:
            other = store.materialise(request.baseline.files, workdir / "baseline")
            baseline = Engine(other, request.baseline, threads=request.threads)
        comparison = compare(
            Engine(folder, request.variant, threads=request.threads),
            baseline,
            requests,
            batch=request.batch,
            rounds=request.rounds,
            seconds=request.seconds,
            warm_up_seconds=request.warm_up_seconds,
            seed=request.seed,
            cpus=cpus,
        )
    progress(1.0, f"measured {request.variant.name}")
    return ProbeResult(
        samples=found["samples"],
        batch=request.batch,
        threads=request.threads,
        hardware=hardware(),
        predictions=store.publish_bytes(_npz(outputs), PREDICTIONS),
        **dict(comparison.variant),
        baseline_timing=comparison.baseline,
        speedup=comparison.speedup,
        cpu_seconds=found["cpu_seconds"] * 1000 / found["samples"],
        peak_rss_bytes=found["peak_rss_bytes"],
        loaded_rss_bytes=found["loaded_rss_bytes"],
        load_seconds=found["load_seconds"],
        rounds=comparison.rounds,
        requests_per_block=comparison.requests_per_block,
        cpus=comparison.cpus,
    )


def hardware() -> Hardware:
    """This machine, as measurements name it."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return Hardware(
        cpu=model or platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        cpu_class=cpu_class(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        python=platform.python_version(),
        onnxruntime=onnxruntime.__version__,
    )


def _inputs(store: Store, entry: FileEntry, specs: tuple[TensorSpec, ...]) -> dict[str, Array]:
    """The split's arrays by input name, in the model's datatypes; all of one length, at least one row."""
    with np.load(io.BytesIO(store.fetch_bytes(entry)), allow_pickle=False) as archive:
        if missing := [spec.name for spec in specs if spec.name not in archive]:
            raise ProbeError(f"the split has no column {missing}; it has {sorted(archive)}")
        raw = {spec.name: archive[spec.name] for spec in specs}
    for spec in specs:
        shape, wanted = raw[spec.name].shape, spec.shape
        fits = len(shape) == len(wanted) and all(w in (-1, s) for w, s in zip(wanted[1:], shape[1:], strict=True))
        # BYTES has no array form without pickle; tokenised text arrives as integers.
        if (
            spec.datatype == "BYTES"
            or not fits
            or not np.can_cast(raw[spec.name].dtype, NUMPY[spec.datatype], "same_kind")
        ):
            raise ProbeError(
                f"input {spec.name!r} takes {spec.datatype} {list(wanted)}; "
                f"the split holds {raw[spec.name].dtype} {list(shape)}"
            )
    if len(lengths := {len(array) for array in raw.values()}) != 1 or 0 in lengths:
        raise ProbeError(f"the split's columns hold {sorted(lengths)} rows; they must be equally long and not empty")
    return {spec.name: raw[spec.name].astype(NUMPY[spec.datatype]) for spec in specs}


def _clean_process(
    request: ProbeRequest, folder: Path, arrays: dict[str, Array], workdir: Path
) -> tuple[Array, dict[str, Any]]:
    """Predictions and resources from a process of its own, which has loaded nothing but this variant."""
    inputs = workdir / "inputs"
    inputs.mkdir()
    for name, array in arrays.items():
        np.save(inputs / f"{name}.npy", array, allow_pickle=False)
    asked, answered, outputs = workdir / "request.json", workdir / "result.json", workdir / "outputs.npy"
    body = {
        "folder": str(folder),
        "variant": request.variant.model_dump(mode="json", by_alias=True),
        "inputs": str(inputs),
        "batch": request.predict_batch,
        "seconds": request.predict_seconds,
        "outputs": str(outputs),
    }
    asked.write_text(json.dumps(body))
    done = subprocess.run(
        [sys.executable, "-m", "serving.probe_resources", str(asked), str(answered)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
        check=False,
    )
    sys.stderr.write(done.stderr)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ProbeError(f"predicting with variant {request.variant.name!r} failed (exit {done.returncode}): {last}")
    return np.load(outputs, allow_pickle=False), json.loads(answered.read_text())


def _requests(arrays: dict[str, Array], batch: int) -> list[dict[str, Array]]:
    """Up to 64 requests of ``batch`` rows; a split shorter than a batch is repeated."""
    rows = len(next(iter(arrays.values())))
    count = max(1, min(MAX_REQUESTS, rows // batch))
    picks = [np.arange(i * batch, (i + 1) * batch) % rows for i in range(count)]
    return [{name: np.ascontiguousarray(array[pick]) for name, array in arrays.items()} for pick in picks]


def _npz(outputs: Array) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, outputs=outputs)
    return buffer.getvalue()


def main() -> None:
    """Measure the request in the first argument's file; the result goes to the second's."""
    request = ProbeRequest.model_validate_json(Path(sys.argv[1]).read_bytes())
    with tempfile.TemporaryDirectory() as folder:
        result = probe(request, Store.from_environment(), Path(folder))
    Path(sys.argv[2]).write_bytes(result.model_dump_json(indent=2).encode())


if __name__ == "__main__":
    main()
