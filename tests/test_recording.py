"""Recorded predictions: stored with the variant's digest, bounded, and checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx_models import answer, digits

from model_registry.recording import MAX_ROWS, record, replay
from model_registry.store import ObjectMissing, Store
from model_registry.variant import TensorSpec


def test_the_first_rows_come_back(store: Store, tmp_path: Path) -> None:
    variant = answer(tmp_path, 1.0)
    x = np.arange(200, dtype=np.float32).reshape(100, 2)
    made = record(store, variant, {"x": x, "target": np.arange(100)}, x + 1)
    recording, inputs, outputs = replay(store, variant.digest)
    assert recording == made and recording.rows == MAX_ROWS and recording.output == "y"
    assert inputs.keys() == {"x"}
    np.testing.assert_array_equal(inputs["x"], x[:MAX_ROWS])
    np.testing.assert_array_equal(outputs, x[:MAX_ROWS] + 1)


def test_measured_again_it_is_replaced(store: Store, tmp_path: Path) -> None:
    variant = answer(tmp_path, 1.0)
    x = np.zeros((2, 2), np.float32)
    record(store, variant, {"x": x}, x)
    record(store, variant, {"x": x}, x + 1)
    assert replay(store, variant.digest)[2].tolist() == [[1, 1], [1, 1]]


def test_large_inputs_are_recorded_in_few_rows(store: Store, tmp_path: Path) -> None:
    variant = answer(tmp_path, 1.0)
    wide = variant.model_copy(update={"inputs": (TensorSpec(name="x", datatype="FP32", shape=(-1, 150_000)),)})
    made = record(store, wide, {"x": np.zeros((3, 150_000), np.float32)}, np.zeros((3, 2), np.float32))
    assert made.rows == 1


def test_text_inputs_need_no_pickle(store: Store, tmp_path: Path) -> None:
    variant = answer(tmp_path, 1.0)
    text = variant.model_copy(update={"inputs": (TensorSpec(name="x", datatype="BYTES", shape=(-1,)),)})
    record(store, text, {"x": np.array(["good", "bad"])}, np.zeros((2, 2), np.float32))
    assert replay(store, text.digest)[1]["x"].tolist() == ["good", "bad"]


def test_what_does_not_fit_is_refused(store: Store, tmp_path: Path) -> None:
    variant = digits(tmp_path)
    with pytest.raises(ValueError, match=r"needs inputs \['image'\]; the recording lacks \['image'\]"):
        record(store, variant, {"x": np.zeros((2, 2))}, np.zeros((2, 10)))
    with pytest.raises(ValueError, match="differ in length or are empty"):
        record(store, variant, {"image": np.zeros((2, 1, 8, 8))}, np.zeros((3, 10)))
    with pytest.raises(ValueError, match="differ in length or are empty"):
        record(store, variant, {"image": np.zeros((0, 1, 8, 8))}, np.zeros((0, 10)))
    with pytest.raises(ObjectMissing, match="no recorded predictions"):
        replay(store, variant.digest)
