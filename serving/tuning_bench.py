"""Engines with and without session options, timed in turns on the same requests and compared in their answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model_registry.variant import Variant
from serving.clean_process import ProbeError
from serving.engine import Engine, optimized_model
from serving.exceptions import EngineLoadError, EngineRunError
from serving.probe_latency import NOISE, Comparison, ModelAlone, compare
from serving.tensors import NUMPY, Array
from serving.tuning_request import Option, Trial, TuningRequest, tuned_runtime

MAX_REQUESTS = 64


class Bench:
    """The variant as it is, loaded, with the requests that everything is compared on."""

    def __init__(self, request: TuningRequest, scratch: Path, cpus: tuple[int, ...]) -> None:
        self._request, self._scratch, self._cpus = request, scratch, cpus
        self._requests = _requests(request)
        self.plain = Engine(request.folder, request.variant)
        self._wanted = [self.plain.run(feed) for feed in self._requests]
        self._graph = self._optimized([])

    def trial(self, option: Option, noise: float) -> Trial:
        """One option alone against the variant as it is."""
        try:
            if self._changes_nothing(option):
                return Trial(option=option.name, verdict="dropped", reason="changes nothing in this graph")
            engine = self.engine([option])
            difference = self.difference(engine)
            if reason := self._refused(engine, difference):
                return Trial(option=option.name, difference=_finite(difference), verdict="dropped", reason=reason)
            return timed(option.name, self.compare(engine, self.plain), noise, difference)
        except (EngineLoadError, EngineRunError) as error:
            return Trial(option=option.name, verdict="dropped", reason=f"fails: {error}")

    def add_up(self, options: Sequence[Option], trials: dict[str, Trial], noise: float) -> list[Option]:
        """The fastest option, and each further one that makes it faster still."""
        kept: list[Option] = []
        for option in sorted(options, key=lambda o: trials[o.name].ratio or 0.0, reverse=True):
            reason = ""
            if kept:
                together = f"with {' + '.join(o.name for o in kept)}"
                if any(_contradict(option, other) for other in kept):
                    reason = f"does not go {together}"
                else:
                    engine = self.engine([*kept, option])
                    found = timed(option.name, self.compare(engine, self.engine(kept)), noise, None)
                    refused = self._refused(engine, self.difference(engine))
                    reason = "" if found.verdict == "kept" and not refused else f"{together}: {refused or found.reason}"
            if reason:
                trials[option.name] = dropped(trials[option.name], reason)
            else:
                kept.append(option)
        return kept

    def engine(self, options: Sequence[Option]) -> Engine:
        """The variant with the options, loaded."""
        folder, variant = self._run_with(options)
        return Engine(folder, variant)

    def compare(self, engine: Engine, other: Engine) -> Comparison:
        """Both timed in turns."""
        request = self._request
        return compare(
            ModelAlone(engine),
            ModelAlone(other),
            self._requests,
            batch=request.batch,
            rounds=request.rounds,
            seconds=request.seconds,
            warm_up_seconds=min(0.3, request.seconds / 8),
            seed=request.seed,
            cpus=self._cpus,
        )

    def difference(self, engine: Engine) -> float:
        """Largest absolute difference of an output from that of the variant as it is."""
        found = [engine.run(feed) for feed in self._requests]
        return max(_distance(f[name], w[name]) for f, w in zip(found, self._wanted, strict=True) for name in _floats(w))

    def _run_with(self, options: Sequence[Option]) -> tuple[Path, Variant]:
        folder, variant = self._request.folder, self._request.variant
        for option in options:
            if option.variant is not None and option.folder is not None:
                folder, variant = option.folder, option.variant
        runtime = tuned_runtime(self._request.variant.runtime, [o.runtime for o in options])
        return folder, Variant.model_validate({**variant.model_dump(), "digest": "", "runtime": runtime})

    def _changes_nothing(self, option: Option) -> bool:
        """Whether the option is one of graph optimizers only, and the optimised graph is the same without it."""
        graph_only = option.variant is None and option.runtime.keys() <= {"graph_optimization", "disabled_optimizers"}
        return graph_only and self._graph is not None and self._optimized([option]) == self._graph

    def _optimized(self, options: Sequence[Option]) -> bytes | None:
        """What ONNX Runtime makes of the graph; None where that cannot be written (2 GiB, disk full)."""
        folder, variant = self._run_with(options)
        path = self._scratch / "optimised.onnx"
        try:
            optimized_model(folder, variant, path)
            return path.read_bytes()
        except (EngineLoadError, OSError):
            return None

    def _refused(self, engine: Engine, difference: float) -> str:
        """Why the answers are not equal enough; '' if they are."""
        largest = max(float(np.abs(w[name]).max(initial=0.0)) for w in self._wanted for name in _floats(w))
        allowed = self._request.tolerance * max(1.0, largest)
        if difference <= allowed:
            return ""
        if not self._request.int8:
            return f"answers differ by {difference:.3g}, allowed is {allowed:.3g}"
        first = engine.outputs[0].name
        changed = sum(
            int((engine.run(feed)[first].argmax(axis=-1) != wanted[first].argmax(axis=-1)).sum())
            for feed, wanted in zip(self._requests, self._wanted, strict=True)
        )
        return f"{changed} rows get another largest output" if changed else ""


def _contradict(one: Option, other: Option) -> bool:
    fields = (one.runtime.keys() & other.runtime.keys()) - {"disabled_optimizers"}
    return bool(fields) or (one.variant is not None and other.variant is not None)


def timed(name: str, found: Comparison, noise: float, difference: float | None) -> Trial:
    """The verdict on a comparison; ``noise``: by how much two equal engines differ, 1 or more."""
    speedup = found.speedup
    assert speedup is not None
    if speedup.interval[0] > noise:
        reason = "faster"
    elif speedup.interval[0] > 1 + NOISE:
        reason = f"not more than two equal engines differ by ({noise:.3f})"
    else:
        reason = speedup.verdict
    return Trial(
        option=name,
        ratio=speedup.value,
        interval=speedup.interval,
        difference=_finite(difference),
        verdict="kept" if reason == "faster" else "dropped",
        reason=reason,
    )


def _finite(difference: float | None) -> float | None:
    return difference if difference is not None and np.isfinite(difference) else None


def dropped(trial: Trial, reason: str) -> Trial:
    """The trial, with a reason not to keep what was tried."""
    return trial.model_copy(update={"verdict": "dropped", "reason": reason})


def _floats(outputs: dict[str, Array]) -> list[str]:
    return [name for name, array in outputs.items() if np.issubdtype(array.dtype, np.number)]


def _distance(found: Array, wanted: Array) -> float:
    """Largest absolute difference; NaN in the same place is equal, elsewhere infinitely far."""
    if found.shape != wanted.shape or (np.isnan(found) != np.isnan(wanted)).any():
        return float("inf")
    same = (found == wanted) | np.isnan(found)
    with np.errstate(invalid="ignore"):
        return float(np.where(same, 0.0, np.abs(found.astype(np.float64) - wanted.astype(np.float64))).max(initial=0.0))


def _requests(request: TuningRequest) -> list[dict[str, Array]]:
    """Up to 64 requests of ``batch`` rows; a split shorter than a batch is repeated."""
    specs = request.variant.inputs
    with np.load(request.inputs, allow_pickle=False) as archive:
        if missing := [spec.name for spec in specs if spec.name not in archive]:
            raise ProbeError(f"the split has no column {missing}; it has {sorted(archive)}")
        arrays = {spec.name: archive[spec.name].astype(NUMPY[spec.datatype]) for spec in specs}
    rows = len(next(iter(arrays.values())))
    count = max(1, min(MAX_REQUESTS, rows // request.batch))
    picks = [np.arange(i * request.batch, (i + 1) * request.batch) % rows for i in range(count)]
    return [{name: np.ascontiguousarray(array[pick]) for name, array in arrays.items()} for pick in picks]
