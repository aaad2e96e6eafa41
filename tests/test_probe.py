"""The probe: predictions, resources, and latency against a baseline."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_models import digits, publish, slow

from model_registry.manifest import FileEntry
from model_registry.store import Store
from model_registry.variant import Variant
from serving.engine import Engine
from serving.probe import ProbeError, ProbeRequest, ProbeResult, measure
from serving.probe_latency import NotEnoughCpus, compare, pinned, verdict
from serving.tensors import Array

QUICK = {"rounds": 5, "seconds": 0.1, "warm_up_seconds": 0.01, "predict_seconds": 0.0}


class Desk:
    """What a stage's child hands to the probe."""

    def __init__(self, extra: dict[str, Any], store: Store, workdir: Path) -> None:
        self.extra, self.store, self.workdir = extra, store, workdir
        self.told: list[tuple[float, str]] = []
        workdir.mkdir()

    def progress(self, fraction: float, text: str) -> None:
        self.told.append((fraction, text))


def split(store: Store, x: Array | None = None) -> FileEntry:
    buffer = io.BytesIO()
    image = np.random.default_rng(1).uniform(0, 16, size=(70, 1, 8, 8))
    if x is None:
        np.savez(buffer, image=image, target=np.zeros(70))
    else:
        np.savez(buffer, image=image, target=np.zeros(70), x=x)
    return store.publish_bytes(buffer.getvalue(), "validation.npz")


def request(variant: Variant, baseline: Variant, inputs: FileEntry, **more: Any) -> dict[str, Any]:
    return ProbeRequest(variant=variant, baseline=baseline, inputs=inputs, **{**QUICK, **more}).model_dump(
        mode="json", by_alias=True
    )


def test_measures_a_variant(store: Store, tmp_path: Path) -> None:
    variant = publish(store, tmp_path / "v", digits(tmp_path / "v", seed=1))
    baseline = publish(store, tmp_path / "b", digits(tmp_path / "b", seed=2))
    inputs = split(store)
    desk = Desk(request(variant, baseline, inputs), store, tmp_path / "work")

    began = time.perf_counter()
    result = ProbeResult.model_validate(json.loads(json.dumps(measure(desk))))
    assert time.perf_counter() - began < 20  # a second on a quiet machine

    with np.load(io.BytesIO(store.fetch_bytes(result.predictions)), allow_pickle=False) as archive:
        outputs = archive["outputs"]
    with np.load(io.BytesIO(store.fetch_bytes(inputs)), allow_pickle=False) as archive:
        image = archive["image"].astype(np.float32)
    expected = Engine(tmp_path / "v", variant).run({"image": image})["logits"]
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)  # 70 rows: two batches of 32 and a rest of 6
    assert result.samples == 70
    assert 0 < result.cpu_seconds < 5
    assert 20 << 20 < result.loaded_rss_bytes <= result.peak_rss_bytes < 400 << 20
    assert 0 < result.p50_ms <= result.p95_ms
    assert result.latency_interval.p50[0] <= result.p50_ms <= result.latency_interval.p50[1]
    assert result.throughput.value > 0
    assert result.baseline_timing.p50_ms > 0
    assert result.speedup is not None
    assert result.speedup.interval[0] <= result.speedup.value <= result.speedup.interval[1]
    assert len(result.cpus) == 1
    assert result.hardware.onnxruntime
    assert desk.told[-1][0] == 1.0


def test_a_slower_model_is_called_slower_and_a_faster_one_faster(store: Store, tmp_path: Path) -> None:
    quick = publish(store, tmp_path / "q", slow(tmp_path / "q", steps=1))
    long = publish(store, tmp_path / "l", slow(tmp_path / "l", steps=40))
    inputs = split(store, x=np.zeros((70, 2), dtype=np.float32))
    ways = {}
    for name, (variant, baseline) in {"quick": (quick, long), "long": (long, quick)}.items():
        desk = Desk(request(variant, baseline, inputs), store, tmp_path / name)
        found = ProbeResult.model_validate(measure(desk)).speedup
        assert found is not None
        ways[name] = found
    assert ways["quick"].verdict == "faster"
    assert ways["quick"].value > 2
    assert ways["long"].verdict == "slower"
    assert ways["long"].value < 0.5


def test_the_baseline_itself_has_no_speedup(store: Store, tmp_path: Path) -> None:
    variant = publish(store, tmp_path / "v", digits(tmp_path / "v"))
    result = ProbeResult.model_validate(measure(Desk(request(variant, variant, split(store)), store, tmp_path / "w")))
    assert result.speedup is None
    assert result.baseline_timing.p50_ms == result.p50_ms


def test_predictions_are_the_same_bytes_each_time(store: Store, tmp_path: Path) -> None:
    variant = publish(store, tmp_path / "v", digits(tmp_path / "v"))
    asked = request(variant, variant, split(store))
    first, second = (measure(Desk(asked, store, tmp_path / name))["predictions"] for name in ("a", "b"))
    assert first == second


def test_a_split_that_does_not_fit_is_named(store: Store, tmp_path: Path) -> None:
    variant = publish(store, tmp_path / "v", slow(tmp_path / "v", steps=1))
    for number, (x, message) in enumerate(
        [
            (None, r"no column \['x'\].*'image'"),
            (np.zeros((70, 3), dtype=np.float32), r"FP32 \[-1, 2\].*\[70, 3\]"),
            (np.full((70, 2), "a"), r"FP32 \[-1, 2\].*<U1"),
            (np.zeros((0, 2), dtype=np.float32), "not empty"),
        ]
    ):
        desk = Desk(request(variant, variant, split(store, x)), store, tmp_path / f"w{number}")
        with pytest.raises(ProbeError, match=message):
            measure(desk)


def test_runs_alone_from_files(store: Store, tmp_path: Path) -> None:
    variant = publish(store, tmp_path / "v", digits(tmp_path / "v"))
    asked, answered = tmp_path / "request.json", tmp_path / "result.json"
    asked.write_text(json.dumps(request(variant, variant, split(store))))
    subprocess.run([sys.executable, "-m", "serving.probe", str(asked), str(answered)], check=True, timeout=60)
    assert ProbeResult.model_validate_json(answered.read_bytes()).samples == 70


class Clock:
    """A clock that only engines move, on a machine whose mood drifts: everything takes up to three times as long."""

    def __init__(self) -> None:
        self.now = 0.0
        self.requests = 0
        self._noise = np.random.default_rng(5)

    def perf_counter(self) -> float:
        return self.now

    def perf_counter_ns(self) -> int:
        return round(self.now * 1e9)

    def spend(self, seconds: float) -> None:
        self.requests += 1
        mood = 2 + np.sin(self.requests / 300)
        self.now += seconds * mood * self._noise.lognormal(sigma=0.05)


class Model:
    """An engine that takes a set time on that clock."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock, self._seconds = clock, seconds

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        self._clock.spend(self._seconds)
        return inputs


@pytest.mark.parametrize(
    ("slower_by", "expected"), [(1.0, "not distinguishable"), (2.0, "faster"), (1.1, "faster"), (0.5, "slower")]
)
def test_interleaving_sees_through_a_drifting_machine(
    monkeypatch: pytest.MonkeyPatch, slower_by: float, expected: str
) -> None:
    clock = Clock()
    monkeypatch.setattr("serving.probe_latency.time", clock)
    variant, baseline = Model(clock, 1e-3), Model(clock, slower_by * 1e-3)
    found = compare(
        variant, baseline, [{"x": np.zeros(1)}], batch=4, rounds=30, seconds=3.0, warm_up_seconds=0.1, seed=3
    )
    assert found.speedup is not None
    assert found.speedup.verdict == expected
    assert found.speedup.value == pytest.approx(slower_by, rel=0.05)
    assert found.speedup.interval[0] <= found.speedup.value <= found.speedup.interval[1]
    assert 1.0 < found.variant.p50_ms < found.variant.p95_ms < 4.0
    assert found.variant.throughput.value == pytest.approx(4e3 / found.variant.p50_ms, rel=0.1)


def test_verdicts_leave_room_for_memory_layout() -> None:
    assert verdict((1.02, 1.1)) == "faster"
    assert verdict((1.004, 1.008)) == "not distinguishable"
    assert verdict((0.9, 0.98)) == "slower"
    assert verdict((0.5, 2.0)) == "not distinguishable"


def test_pinning_is_undone_and_refuses_more_threads_than_cpus() -> None:
    before = os.sched_getaffinity(0)
    with pinned(1) as cpus:
        assert os.sched_getaffinity(0) == set(cpus)
        assert len(cpus) == 1
    assert os.sched_getaffinity(0) == before
    with pytest.raises(NotEnoughCpus, match="10000 threads"), pinned(10000):
        pass
    assert os.sched_getaffinity(0) == before


def test_the_clean_process_has_no_torch() -> None:
    heavy = ("torch", "onnx", "mlflow", "prefect", "pandas")
    code = f"import sys, serving.probe_resources, serving.probe; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
