"""The measurement as a record: it round-trips, has a stable key, and refuses to be half a comparison."""

from __future__ import annotations

import json

import pytest
from measurements import HARDWARE, digits_measurements, measured
from pydantic import ValidationError

from model_registry.measurement import Measurement


def test_a_record_comes_back_as_it_was() -> None:
    for measurement in digits_measurements():
        document = json.loads(measurement.to_json())
        assert document["schema"] == 1
        assert Measurement.model_validate(document) == measurement


def test_the_key_names_variant_machine_and_conditions() -> None:
    base = measured("teacher")
    one = measured("student", base)
    assert one.key.startswith(f"measurements/{one.digest}/{HARDWARE.key}/") and one.key.endswith(".json")
    assert one.key == measured("student", base, p50=3.0).key  # measured again: the same record
    others = [
        measured("student", base, batch=8),
        measured("student", base, predict_batch=32),
        measured("student", base, threads=2),
        measured("student", base, data="e" * 64),
        measured("student", base, split="test"),
        measured("student", measured("other teacher")),
        measured("student", base, hardware=HARDWARE.model_copy(update={"onnxruntime": "1.32.0"})),
    ]
    assert len({one.key, *(m.key for m in others)}) == len(others) + 1


def test_a_comparison_is_whole_or_absent() -> None:
    with pytest.raises(ValidationError, match="no comparison with it"):
        measured("student", measured("teacher"), paired=None)
    with pytest.raises(ValidationError, match="no comparison with it"):
        measured("student", measured("teacher"), speedup=None)
    with pytest.raises(ValidationError, match="Extra inputs"):
        measured("student", nonsense=1)
    with pytest.raises(ValidationError, match="pattern"):
        measured("student", digest="not a digest")


def test_latency_is_known_as_a_share_of_the_baselines() -> None:
    base = measured("teacher", p50=4.0)
    share, (low, high) = measured("student", base, p50=1.0).latency_share
    assert share == pytest.approx(0.25) and low < share < high
    assert base.latency_share == (1.0, (1.0, 1.0))
