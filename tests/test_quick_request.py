"""The quick way of reading a request: it takes nothing that the strict one refuses, and reads the same."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_registry.variant import TensorSpec
from serving.engines.quick_request import QuickReader
from serving.exceptions import ServingError
from serving.limits import RequestLimits
from serving.protocol import InferRequest, parse_request

LIMITS = RequestLimits(elements=1 << 16)
OUTPUTS = (TensorSpec(name="y", datatype="FP32", shape=(-1, 10)),)
WIDTHS = (3, 1000)
"""The second is longer than what orjson reads here."""


def spec(datatype: Any = "FP32", width: int = 3) -> TensorSpec:
    return TensorSpec(name="x", datatype=datatype, shape=(-1, width))


def request(width: int = 3, **changes: Any) -> dict[str, Any]:
    tensor = {"name": "x", "shape": [2, width], "datatype": "FP32", "data": [0.5] * (2 * width), **changes}
    return {"inputs": [tensor]}


def both(body: bytes, spec_: TensorSpec) -> tuple[InferRequest | None, InferRequest | ServingError]:
    quick = QuickReader((spec_,), OUTPUTS, LIMITS)(body)
    try:
        return quick, parse_request(body, (spec_,), OUTPUTS, LIMITS)
    except ServingError as error:
        return quick, error


def agree(body: bytes, spec_: TensorSpec) -> bool:
    """Whether the quick way took it; what it takes is what the strict one reads."""
    quick, strict = both(body, spec_)
    if quick is None:
        return False
    assert isinstance(strict, InferRequest), f"taken, but refused with {strict}"
    assert (quick.outputs, quick.id, quick.rows) == (strict.outputs, strict.id, strict.rows)
    assert quick.inputs["x"].dtype == strict.inputs["x"].dtype
    np.testing.assert_array_equal(quick.inputs["x"], strict.inputs["x"])
    return True


@pytest.mark.parametrize("width", WIDTHS)
def test_what_nearly_everybody_sends_is_read_quickly(width: int) -> None:
    assert agree(orjson.dumps(request(width)), spec(width=width))
    assert agree(orjson.dumps({**request(width), "id": "é"}), spec(width=width))
    whole = request(width, data=[1, -2] * width)
    assert agree(orjson.dumps(whole), spec(width=width))
    numbers = request(width, datatype="UINT8", data=[0, 255] * width)
    assert agree(orjson.dumps(numbers), spec("UINT8", width))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    "change",
    [
        {"data": [True]},
        {"data": [None]},
        {"data": ["1"]},
        {"data": [[1.0]]},
        {"data": [1e39]},
        {"name": "z"},
        {"datatype": "FP64"},
        {"shape": [1, 3]},
        {"shape": [True, 3]},
        {"shape": [-2, 3]},
        {"shape": "x"},
        {"parameters": {"content_type": "np"}},
    ],
)
def test_whatever_is_unlike_it_is_left_to_the_strict_way(width: int, change: dict[str, Any]) -> None:
    if "data" in change:
        change = {"data": [*change["data"], *[0.5] * (2 * width - 1)]}
    assert not agree(orjson.dumps(request(width, **change)), spec(width=width))
    for datatype, value in (("UINT8", 256), ("UINT8", -1), ("INT32", 1.0), ("INT64", 2**63)):
        body = orjson.dumps(request(width, datatype=datatype, data=[value] + [0] * (2 * width - 1)))
        assert not agree(body, spec(datatype, width))


@pytest.mark.parametrize("width", WIDTHS)
def test_a_member_given_twice_is_read_as_the_strict_way_does(width: int) -> None:
    body = orjson.dumps(request(width))
    for twice in (
        body.replace(b'"name":"x"', b'"name":"x","name":"z"'),
        body.replace(b'"name":"x"', b'"name":"z","name":"x"'),
        body.replace(b'{"inputs"', b'{"inputs":[],"inputs"'),
        body[:-1] + b',"inputs":[]}',
    ):
        agree(twice, spec(width=width))


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=300)
@given(st.data(), st.sampled_from(WIDTHS), st.sampled_from(["FP32", "FP64", "INT8", "INT64", "UINT64"]))
def test_any_change_is_read_alike_or_left_alone(data: st.DataObject, width: int, datatype: Any) -> None:
    value = data.draw(st.integers(0, 100) if datatype[:2] != "FP" else st.floats(-1e38, 1e38))
    made: dict[str, Any] = request(width, datatype=datatype, data=[value] * (2 * width))
    if data.draw(st.booleans()):
        where: Any = data.draw(st.sampled_from([made, made["inputs"][0], made["inputs"][0]["data"]]))
        place = data.draw(st.sampled_from(sorted(where) if isinstance(where, dict) else [0, len(where) - 1]))
        where[place] = data.draw(json_values)
    body = json.dumps(made, allow_nan=False, ensure_ascii=data.draw(st.booleans())).encode()
    agree(body, spec(datatype, width))


@given(st.binary(max_size=100), st.integers(0, 6000), st.integers(0, 255))
def test_damaged_bodies_are_read_alike_or_left_alone(data: bytes, place: int, byte: int) -> None:
    good = bytearray(orjson.dumps(request(1000)))
    good[place % len(good)] = byte
    for body in (data, bytes(good), bytes(good[: place % len(good)])):
        agree(body, spec(width=1000))
