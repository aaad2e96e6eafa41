"""Calibration rows unlike the training rows, the choice of the method, and sums that saturate."""

from __future__ import annotations

import json
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from depthwise_models import Chain, images
from numpy.typing import NDArray
from onnx import ModelProto
from onnxruntime.quantization.calibrate import create_calibrator, save_tensors_data

from model_registry.cpu_class import cpu_class, sums_saturate
from tasks.quantize import observed_ranges
from tasks.quantize.agreement import agree, top_answers
from tasks.quantize.calibration import RowReader
from tasks.quantize.calibration_choice import choose_method
from tasks.quantize.calibration_drift import compare_rows, ks_distance
from tasks.quantize.int8_static import quantize_statically
from tasks.quantize.observed_ranges import RANGES, write_ranges
from tasks.quantize.prepared_graph import prepare
from tasks.quantize.saturation import may_saturate, saturating_layers, saturating_product
from tasks.quantize.static_recipe import static_recipe
from tasks.running.errors import CalibrationError

RANDOM = np.random.default_rng(0)


def test_like_rows_give_no_finding_and_shifted_ones_are_named() -> None:
    train = {
        "image": RANDOM.normal(size=(500, 3, 8, 8)),
        "age": RANDOM.normal(40, 10, (500, 2)),
        "text": np.array(["a"]),
    }
    ours = {"image": RANDOM.normal(size=(64, 3, 8, 8)), "age": RANDOM.normal(40, 10, (64, 2)), "text": np.array(["a"])}
    assert compare_rows(train, ours) == []
    ours["age"][:, 1] += 15
    ours["image"][:, 2] += 0.5
    findings = compare_rows(train, ours)
    assert [f.split(":")[0] for f in findings] == [
        "calibration rows are unlike the training rows in 'age', feature 1",
        "calibration rows are unlike the training rows in 'image', mean of a row",
        "calibration rows are unlike the training rows in 'image', spread of a row",
        "calibration rows are unlike the training rows in 'image', mean of channel 2",
    ]
    assert "standard deviations, Kolmogorov-Smirnov distance 0." in findings[0]


def test_few_rows_prove_nothing_and_missing_values_are_left_out() -> None:
    train = {"x": RANDOM.normal(size=10)}
    assert compare_rows(train, {"x": RANDOM.normal(0.3, 1, 16)}) == []
    assert compare_rows({"x": np.full(50, np.nan)}, {"x": np.full(50, np.nan)}) == []
    assert compare_rows({"x": np.zeros(50)}, {"x": np.zeros(50)}) == []
    assert ks_distance(np.array([1.0, np.nan, 2.0]), np.array([1.0, 2.0])) == 0.0


@pytest.mark.parametrize(
    "spoil", [lambda x: x / 255, lambda x: x + 5000, lambda x: x * 0 + 3], ids=["/", "+", "constant"]
)
def test_rows_of_another_scale_are_refused(spoil) -> None:  # type: ignore[no-untyped-def]
    pixels = RANDOM.uniform(0, 255, (200, 1, 8, 8))
    with pytest.raises(CalibrationError, match="calibration rows of 'image' are of another scale than the training"):
        compare_rows({"image": pixels}, {"image": spoil(pixels[:50])})


@pytest.fixture
def outliers(tmp_path: Path) -> tuple[bytes, ModelProto]:
    chain = Chain(3, 8).conv(16, 3, 3).add("Relu").conv(16, 16, 3).add("Relu").add("Flatten").gemm(10, 1024)
    file = chain.file()
    return file, prepare(file, tmp_path)


def test_auto_leaves_minmax_only_for_something_nearer(outliers: tuple[bytes, ModelProto], tmp_path: Path) -> None:
    file, prepared = outliers
    rows = images(64)

    def recipe(feeds: dict[str, np.ndarray], method: str) -> dict[str, object]:
        _, notes = static_recipe(
            prepared,
            feeds,
            top_answers(file, feeds),
            tmp_path,
            method=method,
            percentile=99.9,
            per_channel=True,
            reduce_range=sums_saturate(cpu_class()),
            activations="uint8",
            correct_biases=False,
        )
        (tmp_path / "ranges-minmax.json").unlink(missing_ok=True)
        (tmp_path / "ranges-percentile.json").unlink(missing_ok=True)
        (tmp_path / "ranges-entropy.json").unlink(missing_ok=True)
        return notes

    assert recipe(rows, "percentile") == {"calibration_method": "percentile"}
    found = recipe(rows, "auto")
    assert found["calibration_method"] == "minmax" and len(found["calibration_errors"]) == 3  # type: ignore[arg-type]


def test_the_choice_goes_by_agreement_and_error(tmp_path: Path) -> None:
    chain = Chain(3, 2).add("Flatten").gemm(4, 12)
    rows = images(64, 3, 2)
    wanted = top_answers(chain.file(), rows)

    def made(noise: dict[str, float]) -> str:
        def quantize(method: str) -> ModelProto:
            model = chain.model()
            spoiled = Chain(3, 2).add("Flatten").gemm(4, 12)
            spoiled.weights["w1"] = spoiled.weights["w1"] * (1 + noise[method])
            spoiled.weights["w1b"] = spoiled.weights["w1b"] * (1 + noise[method])
            model.CopyFrom(spoiled.model())
            return model

        return choose_method(quantize, wanted, rows)[0]

    assert made({"minmax": 0.1, "percentile": 0.099, "entropy": 0.2}) == "minmax"
    assert made({"minmax": 0.1, "percentile": 0.05, "entropy": 0.2}) == "percentile"
    assert made({"minmax": 0.1, "percentile": 0.05, "entropy": 0.01}) == "entropy"


def test_stored_ranges_give_the_same_model_as_fresh_ones(outliers: tuple[bytes, ModelProto], tmp_path: Path) -> None:
    _, prepared = outliers
    made = []
    for _ in range(2):
        made.append(
            quantize_statically(
                prepared,
                RowReader(images(64)),
                tmp_path,
                method="minmax",
                percentile=99.9,
                per_channel=True,
                reduce_range=sums_saturate(cpu_class()),
                activations="uint8",
                ranges=tmp_path / "ranges.json",
            ).SerializeToString()
        )
    assert (tmp_path / "ranges.json").is_file() and made[0] == made[1]


def test_sums_saturate_with_eight_bits_and_never_with_seven() -> None:
    activations = RANDOM.integers(0, 256, (64, 33), dtype=np.uint8)
    activations[0] = 255
    exact = activations.astype(np.int32)
    for largest, saturates in ((127, True), (64, False)):
        weights = RANDOM.integers(-largest, largest + 1, (33, 8)).astype(np.int8)
        weights[:2, 0] = largest
        assert may_saturate(weights.T) is saturates
        found = saturating_product(activations, weights)
        wrong = found != exact @ weights.astype(np.int32)
        assert bool(wrong[0, 0]) is saturates and bool(wrong.any()) is saturates
    assert saturating_product(np.array([[255, 255]], np.uint8), np.array([[127], [127]], np.int8)).item() == 32767
    assert saturating_product(np.array([[255, 255]], np.uint8), np.array([[-128], [-128]], np.int8)).item() == -32768


def test_reduce_range_is_what_keeps_a_models_sums_whole(outliers: tuple[bytes, ModelProto], tmp_path: Path) -> None:
    file, prepared = outliers
    found = {}
    for reduce_range in (False, True):
        quantized = quantize_statically(
            prepared,
            RowReader(images(64)),
            tmp_path,
            method="minmax",
            percentile=99.9,
            per_channel=True,
            reduce_range=reduce_range,
            activations="uint8",
        )
        found[reduce_range] = saturating_layers(quantized)
        assert agree(top_answers(file, images(64)), top_answers(quantized.SerializeToString(), images(64))).error < 0.05
    assert found == {False: ("Conv_0", "Conv_2", "Gemm_5"), True: ()}


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_any_number_of_workers_makes_the_file_that_one_calibrator_makes(
    method: str, outliers: tuple[bytes, ModelProto], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(observed_ranges._BINS, "entropy", 320)  # of 1 024 it takes seconds to choose
    made, ranges = set(), set()
    for cores in (1, 2, 4):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        quantized = quantize_statically(
            outliers[1],
            RowReader(images(160)),
            tmp_path,
            method=method,
            percentile=99.9,
            per_channel=True,
            reduce_range=False,
            activations="uint8",
            ranges=tmp_path / f"{cores}.json",
        )
        made.add(quantized.SerializeToString(deterministic=True))
        ranges.add((tmp_path / f"{cores}.json").read_text())
    assert len(made) == len(ranges) == 1

    calibrator = create_calibrator(  # ONNX Runtime's own, with all rows in memory
        tmp_path / "prepared.onnx",
        ["Conv", "Gemm"],
        augmented_model_path=str(tmp_path / "whole.onnx"),
        calibrate_method=RANGES[method],
        extra_options={"num_bins": 320, "num_quantized_bins": 256} if method == "entropy" else {"percentile": 99.9},
    )
    calibrator.collect_data(RowReader(images(160)))
    save_tensors_data(calibrator.compute_data(), tmp_path / "whole.json")
    whole, ours = json.loads((tmp_path / "whole.json").read_text())["data"], json.loads(ranges.pop())["data"]
    assert whole == {name: ours[name] for name in whole} and len(whole) > 4


def test_memory_holds_the_activations_of_a_batch_for_each_worker(
    outliers: tuple[bytes, ModelProto], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, alive = list[weakref.ref[Any]](), list[int]()
    look = observed_ranges._extremes

    def watched(name: str, values: NDArray[Any]) -> Any:
        seen.append(weakref.ref(values))
        alive.append(sum(reference() is not None for reference in seen))
        return look(name, values)

    monkeypatch.setattr(observed_ranges, "_extremes", watched)
    onnx.save_model(outliers[1], tmp_path / "model.onnx")
    file, rows = tmp_path / "ranges.json", RowReader(images(640))
    write_ranges(tmp_path / "model.onnx", ["Conv"], rows, file, method="minmax", percentile=99.9, workers=2)
    tensors = len(json.loads(file.read_text())["data"])
    assert len(alive) == 40 * tensors
    assert max(alive) <= 2 * tensors
