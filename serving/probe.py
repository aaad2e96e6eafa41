"""The probe: measures variants with the very engine that serves them, in processes without torch.

``python -m serving.probe`` answers a ProbeRequest with a ProbeResult, as :mod:`model_registry.answering` says. It reads
and writes files and never the store.
"""

from __future__ import annotations

import os
import platform
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from model_registry.answering import AnsweringFailed, AskedProcess, answer_requests
from model_registry.cpu_class import cpu_class, cpu_model
from model_registry.decoder_form import TOKENS
from model_registry.measurement import Clocked, Hardware, LatencyIntervals, Speedup, Throughput, TokenSpeed
from model_registry.variant import Frozen, TensorSpec, Variant
from serving.decoding.prompt_reader import PromptReader
from serving.decoding.token_loop import TokenLoop
from serving.decoding.token_worker import token_loop
from serving.engine import Engine
from serving.limits import GenerationBounds
from serving.probe_latency import EngineTiming, ModelAlone, compare_engines, compare_many, pinned
from serving.probe_tokens import TIMED, continue_greedily, time_loops
from serving.quiet_runtime import onnxruntime
from serving.tensors import NUMPY, Array

MAX_REQUESTS = 64


class ProbeError(Exception):
    """The split does not fit the variant, or predicting it failed; names what."""


class ProbeRequest(Frozen):
    """What to measure, on what, and how carefully."""

    variant: Variant
    folder: Path = Field(description="holds the variant's files under their manifest names")
    baseline: Variant
    baseline_folder: Path | None = Field(
        default=None, description="the baseline's files; None: the baseline of the request before, still loaded"
    )
    inputs: Path = Field(description="npz: an array per input of the variant, one row per sample")
    outputs: Path = Field(description="npy to write: the first output of every sample, float32, in order")
    batch: int = Field(default=1, ge=1, description="samples per request when latency is measured")
    threads: int = Field(default=1, ge=1, description="intra-op threads, and pinned CPUs, when latency is measured")
    rounds: int = Field(default=30, ge=2, description="blocks of requests per engine")
    seconds: float = Field(default=3.0, ge=0, description="time for all blocks of both engines together, about")
    least: int = Field(default=0, ge=0, description="requests that each engine answers at least, in that time or more")
    warm_up_seconds: float = Field(default=0.3, ge=0, description="untimed running of each engine before the blocks")
    predict_batch: int = Field(default=32, ge=1, description="samples per run when the whole split is predicted")
    predict_seconds: float = Field(default=0.5, ge=0, description="the split is predicted again until this has passed")
    seed: int = Field(default=0, ge=0, description="of the order of blocks and of the bootstrap")


class GreedyRequest(Frozen):
    """What two variants are to continue; fields as in :class:`ProbeRequest`."""

    prompts: tuple[tuple[int, ...], ...] = Field(min_length=1, max_length=64, description="tokens of each text")
    tokens: int = Field(ge=1, description="of each answer, at most")
    variant: Variant
    folder: Path
    baseline: Variant
    baseline_folder: Path | None = None
    threads: int = Field(default=1, ge=1)


class ClockRequest(Frozen):
    """Which variants to time side by side, on what; fields as in :class:`ProbeRequest`."""

    clocked: tuple[tuple[Variant, Path], ...] = Field(min_length=1, description="each with the folder of its files")
    baseline: Variant
    baseline_folder: Path | None = None
    inputs: Path
    batch: int = Field(default=1, ge=1)
    threads: int = Field(default=1, ge=1)
    rounds: int = Field(default=20, ge=2)
    seconds: float = Field(default=0.3, ge=0, description="time for all blocks of one variant, about")
    warm_up_seconds: float = Field(default=0.05, ge=0)
    seed: int = Field(default=0, ge=0)


class ProbeResult(Frozen):
    """What was measured; fields as in :class:`model_registry.measurement.Measurement`."""

    samples: int
    batch: int
    threads: int
    hardware: Hardware
    requests: int
    p50_ms: float
    p95_ms: float
    latency_interval: LatencyIntervals
    throughput: Throughput
    baseline_timing: EngineTiming
    speedup: Speedup | None
    """None where variant and baseline are the same."""
    tail_share: float | None
    """None likewise."""
    token_speed: TokenSpeed | None
    """None for models that do not continue text."""
    cpu_seconds: float
    """CPU seconds per 1000 samples, all threads, at ``predict_batch``; as in Measurement."""
    peak_rss_bytes: int
    loaded_rss_bytes: int
    load_seconds: float
    rounds: int
    requests_per_block: int
    cpus: tuple[int, ...]


class Probe:
    """Measures one variant after the other. Between them it keeps the baseline loaded, and a clean process waiting."""

    def __init__(self) -> None:
        self._clean: AskedProcess | None = None
        self._baseline: tuple[str, int, Engine, PromptReader | None] | None = None

    def measure(self, request: ProbeRequest) -> ProbeResult:
        """Predict the split in a clean process, then time variant and baseline in turns.

        Raises:
            ProbeError: the split lacks an input or has the wrong shape, or the clean process failed.
            NotEnoughCpus: fewer CPUs than threads.
            EngineLoadError, CpuClassMismatch, ManifestMismatch: as :class:`serving.engine.Engine`.
        """
        arrays = _inputs(request.inputs, request.variant.inputs)
        found = self._predict(request, arrays)
        with pinned(request.threads) as cpus:
            same = request.variant.digest == request.baseline.digest
            baseline = None if same else self._load_baseline(request)
            engine = Engine(request.folder, request.variant, threads=request.threads)
            comparison = compare_engines(
                ModelAlone(engine),
                ModelAlone(baseline) if baseline else None,
                _requests(arrays, request.batch),
                batch=request.batch,
                rounds=request.rounds,
                seconds=request.seconds,
                warm_up_seconds=request.warm_up_seconds,
                seed=request.seed,
                least=request.least,
                cpus=cpus,
            )
            speed = self._time_tokens(request, engine, baseline, arrays) if engine.decoder else None
        return ProbeResult(
            samples=found["samples"],
            batch=request.batch,
            threads=request.threads,
            hardware=hardware(),
            **dict(comparison.variant),
            baseline_timing=comparison.baseline,
            speedup=comparison.speedup,
            tail_share=comparison.tail_share,
            token_speed=speed,
            cpu_seconds=found["cpu_seconds"] * 1000 / found["samples"],
            peak_rss_bytes=found["peak_rss_bytes"],
            loaded_rss_bytes=found["loaded_rss_bytes"],
            load_seconds=found["load_seconds"],
            rounds=comparison.rounds,
            requests_per_block=comparison.requests_per_block,
            cpus=comparison.cpus,
        )

    def clock(self, request: ClockRequest) -> list[Clocked]:
        """Time the variants and the baseline in turns; nothing is predicted, so their weights may mean nothing.

        Raises:
            As :meth:`measure`.
        """
        arrays = _inputs(request.inputs, request.baseline.inputs)
        with pinned(request.threads):
            baseline = self._load_baseline(request)
            engines = [Engine(folder, variant, threads=request.threads) for variant, folder in request.clocked]
            timed = compare_many(
                [ModelAlone(engine) for engine in engines],
                ModelAlone(baseline),
                _requests(arrays, request.batch),
                batch=request.batch,
                rounds=request.rounds,
                seconds=request.seconds * (1 + len(engines)),
                warm_up_seconds=request.warm_up_seconds,
                seed=request.seed,
            )
        return [
            Clocked(
                digest=variant.digest,
                name=variant.name,
                bytes=variant.model_bytes,
                batch=request.batch,
                p50_ms=timing.p50_ms,
                p95_ms=timing.p95_ms,
                throughput=timing.throughput,
                speedup=speedup,
                tail_share=share,
            )
            for (variant, _), (timing, speedup, share) in zip(request.clocked, timed, strict=True)
        ]

    def continue_texts(self, request: GreedyRequest) -> dict[str, list[list[tuple[int, ...]]]]:
        """What ``variant`` and ``baseline`` say after each prompt, greedily: the bytes of each token.

        Raises:
            EngineRunError: a prompt and its answer are longer than the context.
            EngineLoadError, CpuClassMismatch, ManifestMismatch: as :class:`serving.engine.Engine`.
        """
        longest = max(map(len, request.prompts)) + request.tokens
        bounds = GenerationBounds(context=longest)
        engine = Engine(request.folder, request.variant, threads=request.threads)
        loops = {
            "variant": token_loop(engine, request.folder, bounds),
            "baseline": self._baseline_loop(request, bounds),
        }
        return {role: continue_greedily(loop, request.prompts, request.tokens) for role, loop in loops.items()}

    def get_ready(self) -> None:
        """Have a clean process waiting, and return when it has done its imports."""
        if self._clean is None:
            self._clean = AskedProcess("serving.probe_resources")
        self._clean.wait_ready()

    def close(self) -> None:
        """End the clean process that waits."""
        if self._clean is not None:
            self._clean.close()
            self._clean = None

    def _predict(self, request: ProbeRequest, arrays: dict[str, Array]) -> dict[str, float]:
        """Predictions and resources from a process of its own, which has loaded nothing but this variant."""
        with tempfile.TemporaryDirectory() as folder:
            for name, array in arrays.items():
                np.save(Path(folder) / f"{name}.npy", array, allow_pickle=False)
            self.get_ready()
            assert self._clean is not None
            try:
                found: dict[str, float] = self._clean.ask(
                    {
                        "folder": str(request.folder),
                        "variant": request.variant.model_dump(mode="json", by_alias=True),
                        "inputs": folder,
                        "batch": request.predict_batch,
                        "seconds": request.predict_seconds,
                        "outputs": str(request.outputs),
                    }
                )
            except AnsweringFailed as error:
                raise ProbeError(f"predicting with variant {request.variant.name!r} failed: {error}") from error
            finally:
                self.close()  # it has loaded a variant: no other would be measured cleanly
        return found

    def _time_tokens(
        self, request: ProbeRequest, engine: Engine, baseline: Engine | None, arrays: dict[str, Array]
    ) -> TokenSpeed:
        """Both continue beginnings of the split's texts, in turns."""
        return time_loops(
            token_loop(engine, request.folder, TIMED),
            None if baseline is None else self._baseline_loop(request, TIMED),
            arrays[TOKENS][:MAX_REQUESTS].tolist(),
            rounds=request.rounds,
            seconds=request.seconds,
            seed=request.seed,
        )

    def _baseline_loop(self, request: ProbeRequest | GreedyRequest, bounds: GenerationBounds) -> TokenLoop:
        """What continues texts by the baseline, whose files may be gone by now."""
        engine = self._load_baseline(request)
        assert self._baseline is not None and self._baseline[3] is not None
        return token_loop(engine, self._baseline[3], bounds)

    def _load_baseline(self, request: ProbeRequest | ClockRequest | GreedyRequest) -> Engine:
        """The baseline's engine: one instance for all variants, as they are all compared with the same."""
        wanted = (request.baseline.digest, request.threads)
        if self._baseline is None or self._baseline[:2] != wanted:
            if request.baseline_folder is None:
                raise ProbeError(f"baseline {request.baseline.name!r} is not loaded; name the folder of its files")
            engine = Engine(request.baseline_folder, request.baseline, threads=request.threads)
            form, folder = engine.decoder, request.baseline_folder
            reader = None if form is None else PromptReader(folder, request.baseline, form)
            self._baseline = (*wanted, engine, reader)
        return self._baseline[2]


def hardware() -> Hardware:
    """This machine, as measurements name it."""
    return Hardware(
        cpu=cpu_model(),
        cores=len(os.sched_getaffinity(0)),
        cpu_class=cpu_class(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        python=platform.python_version(),
        onnxruntime=onnxruntime.__version__,
    )


def _inputs(path: Path, specs: tuple[TensorSpec, ...]) -> dict[str, Array]:
    """The split's arrays by input name, in the model's datatypes; all of one length, at least one row."""
    with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
        there = {name.removesuffix(".npy") for name in archive.namelist()}
        if missing := [spec.name for spec in specs if spec.name not in there]:
            raise ProbeError(f"the split has no column {missing}; it has {sorted(there)}")
        files = {spec.name: archive.extract(f"{spec.name}.npy", folder) for spec in specs}
        # Mapped, as a split may be larger than the memory; the files go with the arrays.
        raw = {n: np.asarray(np.load(file, mmap_mode="r", allow_pickle=False)) for n, file in files.items()}
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
    return {spec.name: raw[spec.name].astype(NUMPY[spec.datatype], copy=False) for spec in specs}


def _requests(arrays: dict[str, Array], batch: int) -> list[dict[str, Array]]:
    """Up to 64 requests of ``batch`` rows; a split shorter than a batch is repeated."""
    rows = len(next(iter(arrays.values())))
    count = max(1, min(MAX_REQUESTS, rows // batch))
    picks = [np.arange(i * batch, (i + 1) * batch) % rows for i in range(count)]
    return [{name: np.ascontiguousarray(array[pick]) for name, array in arrays.items()} for pick in picks]


def main() -> None:
    """Answer the requests on stdin until it ends."""
    probe = Probe()

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        if "clocked" in request:
            found = probe.clock(ClockRequest.model_validate(request))
            return {"clocked": [each.model_dump(mode="json") for each in found]}
        if "prompts" in request:
            return dict(probe.continue_texts(GreedyRequest.model_validate(request)))
        return probe.measure(ProbeRequest.model_validate(request)).model_dump(mode="json")

    answer_requests(answer, come_to_rest=probe.get_ready)
    probe.close()


if __name__ == "__main__":
    main()
