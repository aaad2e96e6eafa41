"""The probe: predictions, resources, and latency against a baseline."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_models import answer, digits, slow, wide
from patience import PATIENCE
from text_variants import measuring

from model_registry.variant import Variant
from serving.engine import Engine
from serving.probe import Probe, ProbeError, ProbeRequest, ProbeResult
from serving.probe_latency import NotEnoughCpus, compare_engines, pinned, speedup_verdict
from serving.probe_resources import run
from serving.tensors import Array

pytestmark = [pytest.mark.slow, pytest.mark.alone]  # processes that measure

QUICK = {"rounds": 5, "seconds": 0.1, "warm_up_seconds": 0.01, "predict_seconds": 0.0}


@pytest.fixture
def probe() -> Iterator[Probe]:
    made = Probe()
    yield made
    made.close()


def split(tmp_path: Path, x: Array | None = None) -> Path:
    image = np.random.default_rng(1).uniform(0, 16, size=(70, 1, 8, 8))
    columns = {"image": image, "target": np.zeros(70)} | ({} if x is None else {"x": x})
    np.savez(tmp_path / "validation.npz", allow_pickle=False, **columns)
    return tmp_path / "validation.npz"


def request(tmp_path: Path, variant: str, baseline: str | None, known: dict[str, Variant], **more: Any) -> ProbeRequest:
    """The variants are named by their folders; without a baseline the variant is its own."""
    return ProbeRequest(
        variant=known[variant],
        folder=tmp_path / variant,
        baseline=known[baseline or variant],
        baseline_folder=tmp_path / baseline if baseline else None,
        outputs=tmp_path / f"{variant}.npy",
        **{"inputs": tmp_path / "validation.npz", **QUICK, **more},
    )


def test_measures_a_variant(tmp_path: Path, probe: Probe) -> None:
    known = {"v": digits(tmp_path / "v", seed=1), "b": digits(tmp_path / "b", seed=2)}
    inputs = split(tmp_path)

    began = time.perf_counter()
    result = probe.measure(request(tmp_path, "v", "b", known))
    assert time.perf_counter() - began < 20  # half a second on a quiet machine

    outputs = np.load(tmp_path / "v.npy", allow_pickle=False)
    with np.load(inputs, allow_pickle=False) as archive:
        image = archive["image"].astype(np.float32)
    expected = Engine(tmp_path / "v", known["v"]).run({"image": image})["logits"]
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


def test_a_slower_model_is_called_slower_and_a_faster_one_faster(tmp_path: Path, probe: Probe) -> None:
    known = {name: slow(tmp_path / name, steps=steps) for name, steps in {"quick": 1, "long": 40}.items()}
    split(tmp_path, x=np.zeros((70, 2), dtype=np.float32))
    ways = {}
    for variant, baseline in (("quick", "long"), ("long", "quick")):
        found = probe.measure(request(tmp_path, variant, baseline, known)).speedup
        probe.get_ready()
        assert found is not None
        ways[variant] = found
    assert ways["quick"].verdict == "faster"
    assert ways["quick"].value > 2
    assert ways["long"].verdict == "slower"
    assert ways["long"].value < 0.5


def test_the_baseline_itself_has_no_speedup(tmp_path: Path, probe: Probe) -> None:
    known = {"v": digits(tmp_path / "v")}
    split(tmp_path)
    result = probe.measure(request(tmp_path, "v", None, known))
    assert result.speedup is None
    assert result.baseline_timing.p50_ms == result.p50_ms


def test_each_variant_has_a_clean_process_of_its_own(tmp_path: Path, probe: Probe) -> None:
    known = {"small": answer(tmp_path / "small", 1), "large": wide(tmp_path / "large", 8 << 20)}
    split(tmp_path, x=np.zeros((70, 2), dtype=np.float32))
    peaks = []
    for name in ("small", "large", "small"):
        peaks.append(probe.measure(request(tmp_path, name, None, known)).peak_rss_bytes)
        probe.get_ready()
    assert peaks[1] > peaks[0] + (16 << 20)  # the weights are 32 MB
    assert abs(peaks[2] - peaks[0]) < 8 << 20


def test_the_baseline_stays_loaded_for_the_next_variant(tmp_path: Path, probe: Probe) -> None:
    known = {name: digits(tmp_path / name, seed=seed) for seed, name in enumerate("vbw")}
    split(tmp_path)
    again = {"baseline_folder": None}
    with pytest.raises(ProbeError, match="baseline 'digits' is not loaded"):
        probe.measure(request(tmp_path, "v", "b", known).model_copy(update=again))
    probe.get_ready()
    probe.measure(request(tmp_path, "v", "b", known))
    shutil.rmtree(tmp_path / "b")
    probe.get_ready()
    found = probe.measure(request(tmp_path, "w", "b", known).model_copy(update=again))
    assert found.speedup is not None
    probe.get_ready()
    with pytest.raises(ProbeError, match="not loaded"):  # not with as many threads as are asked for now
        probe.measure(request(tmp_path, "w", "b", known, threads=2).model_copy(update=again))


def test_predictions_are_the_same_bytes_each_time(tmp_path: Path, probe: Probe) -> None:
    known = {"v": digits(tmp_path / "v")}
    split(tmp_path)
    found = []
    for _ in range(2):
        probe.measure(request(tmp_path, "v", None, known))
        probe.get_ready()
        found.append((tmp_path / "v.npy").read_bytes())
    assert found[0] == found[1]


def test_texts_are_asked_as_long_as_the_endpoint_fills_them_up(tmp_path: Path) -> None:
    variant = measuring(tmp_path / "v")
    draw = np.random.default_rng(0)
    tokens = np.zeros((300, 64), np.int64)
    for row in tokens:
        length = int(draw.integers(1, 65))
        row[:length] = draw.integers(4, 9, length)
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "tokens.npy", tokens)
    request = {"folder": str(tmp_path / "v"), "variant": variant.model_dump(mode="json", by_alias=True)}
    files = {"inputs": str(tmp_path / "in"), "outputs": str(tmp_path / "out.npy")}
    assert run({**request, **files, "batch": 8, "seconds": 0.0})["samples"] == 300
    sums, asked = np.load(tmp_path / "out.npy").T
    np.testing.assert_array_equal(sums, tokens.sum(axis=1), "in the order of the rows")
    needed = -(-(tokens != 0).sum(axis=1) // 16) * 16
    assert set(asked[:16]) == {64}, "what may be recorded is asked as it will be asked again"
    assert (asked[16:] >= needed[16:]).all()
    assert (asked[16:] == needed[16:]).mean() > 0.9
    assert {16, 32, 48, 64} == set(asked[16:].astype(int))


def test_a_split_that_does_not_fit_is_named(tmp_path: Path, probe: Probe) -> None:
    known = {"v": slow(tmp_path / "v", steps=1)}
    for x, message in [
        (None, r"no column \['x'\].*'image'"),
        (np.zeros((70, 3), dtype=np.float32), r"FP32 \[-1, 2\].*\[70, 3\]"),
        (np.full((70, 2), "a"), r"FP32 \[-1, 2\].*<U1"),
        (np.zeros((0, 2), dtype=np.float32), "not empty"),
    ]:
        split(tmp_path, x)
        with pytest.raises(ProbeError, match=message):
            probe.measure(request(tmp_path, "v", None, known))


def test_a_model_that_cannot_be_loaded_is_told_by_the_clean_process(
    tmp_path: Path, probe: Probe, capfd: pytest.CaptureFixture[str]
) -> None:
    known = {"v": digits(tmp_path / "v")}
    split(tmp_path)
    (tmp_path / "v" / "model.onnx").write_bytes(b"something else")
    with pytest.raises(ProbeError, match=r"'digits' failed: ManifestMismatch: .*model.onnx"):
        probe.measure(request(tmp_path, "v", None, known))
    assert "Traceback" in capfd.readouterr().err


def test_the_process_answers_until_its_input_ends(tmp_path: Path) -> None:
    known = {"v": digits(tmp_path / "v", seed=1), "b": digits(tmp_path / "b", seed=2)}
    split(tmp_path)
    asked = [request(tmp_path, "b", None, known), request(tmp_path, "v", "b", known)]
    text = "".join(r.model_dump_json(by_alias=True) + "\n" for r in asked)
    command = [sys.executable, "-m", "serving.probe"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True, timeout=PATIENCE)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [list(line) for line in lines] == [["ready"], ["result"], ["ready"], ["result"], ["ready"]]
    assert ProbeResult.model_validate(lines[3]["result"]).speedup is not None

    (tmp_path / "b" / "model.onnx").unlink()
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 1
    ready, refused = map(json.loads, done.stdout.splitlines())  # and no second answer
    assert ready == {"ready": True} and "model.onnx" in refused["error"]


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
    found = compare_engines(
        variant, baseline, [{"x": np.zeros(1)}], batch=4, rounds=30, seconds=3.0, warm_up_seconds=0.1, seed=3
    )
    assert found.speedup is not None
    assert found.speedup.verdict == expected
    assert found.speedup.value == pytest.approx(slower_by, rel=0.05)
    assert found.speedup.interval[0] <= found.speedup.value <= found.speedup.interval[1]
    assert found.tail_share == pytest.approx(1 / slower_by, rel=0.05)
    assert 1.0 < found.variant.p50_ms < found.variant.p95_ms < 4.0
    assert found.variant.throughput.value == pytest.approx(4e3 / found.variant.p50_ms, rel=0.1)


class Beat:
    """An engine that takes these seconds, one after the other and again, on a clock that only it moves."""

    def __init__(self, *seconds: float) -> None:
        self._seconds, self.runs, self.now = seconds, 0, 0.0

    def perf_counter(self) -> float:
        return self.now

    def perf_counter_ns(self) -> int:
        return round(self.now * 1e9)

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        self.now += self._seconds[self.runs % len(self._seconds)]
        self.runs += 1
        return inputs


def test_the_95th_percentile_is_that_of_the_slowest_twentieth(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Beat(*[1e-3] * 18, 7e-3, 9e-3)
    monkeypatch.setattr("serving.probe_latency.time", engine)
    found = compare_engines(
        engine, None, [{"x": np.zeros(1)}], batch=2, rounds=5, seconds=0.1001, warm_up_seconds=0.0, seed=0
    )
    assert found.requests_per_block == 20  # 18 take a millisecond
    assert found.variant.p50_ms == pytest.approx(1.0)
    assert found.variant.p95_ms == pytest.approx(7.1)  # numpy's: a twentieth of the way from the 19th to the 20th
    assert found.variant.latency_interval.p95 == pytest.approx((7.1, 7.1))
    assert found.variant.throughput.value == pytest.approx(20 * 2 / 34e-3)


@pytest.mark.parametrize("least", [100, 200])
def test_the_tail_is_that_of_all_requests_and_there_are_enough_of_them(
    monkeypatch: pytest.MonkeyPatch, least: int
) -> None:
    """8 % of the requests take three times as long: by the percentiles of blocks of three it would be 5.25 ms."""
    clock, rng = Beat(0.0), np.random.default_rng(0)
    monkeypatch.setattr("serving.probe_latency.time", clock)

    class Tailed:
        def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
            clock.now += 15e-3 if rng.random() < 0.08 else 5e-3
            return inputs

    found = compare_engines(
        Tailed(), Tailed(), [{"x": np.zeros(1)}],
        batch=1, rounds=40, seconds=1.0, warm_up_seconds=0.1, seed=0, least=least,
    )  # fmt: skip
    assert found.variant.requests == 40 * found.requests_per_block >= least
    assert found.variant.p95_ms == pytest.approx(15.0)
    low, high = found.variant.latency_interval.p95
    assert low <= 15.0 == pytest.approx(high)


def test_who_goes_first_is_drawn_in_each_round() -> None:
    def order(seed: int) -> list[str]:
        asked = list[str]()

        class Named:
            def __init__(self, name: str) -> None:
                self.name = name

            def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
                asked.append(self.name)
                return inputs

        compare_engines(
            Named("variant"), Named("baseline"), [{"x": np.zeros(1)}],
            batch=1, rounds=40, seconds=0.0, warm_up_seconds=0.0, seed=seed,
        )  # fmt: skip
        blocks = asked[4:][::3]  # two requests each to warm up, then three a block
        assert sorted(blocks) == ["baseline"] * 40 + ["variant"] * 40
        return blocks[::2]

    first = order(seed=1)
    assert 10 < first.count("variant") < 30
    assert first == order(seed=1) != order(seed=2)


def test_verdicts_leave_room_for_memory_layout() -> None:
    assert speedup_verdict((1.02, 1.1)) == "faster"
    assert speedup_verdict((1.004, 1.008)) == "not distinguishable"
    assert speedup_verdict((0.9, 0.98)) == "slower"
    assert speedup_verdict((0.5, 2.0)) == "not distinguishable"


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
    heavy = ("torch", "onnx", "mlflow", "prefect", "pandas", "boto3")
    code = f"import sys, serving.probe_resources, serving.probe; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
