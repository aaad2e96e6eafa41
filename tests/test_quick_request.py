"""The quick way of reading a request: it takes nothing that the strict one refuses, and reads the same."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from model_registry.variant import TensorSpec
from serving.engines.answer_writer import AnswerWriter
from serving.engines.quick_request import QuickReader
from serving.exceptions import ServingError, Unsupported
from serving.limits import RequestLimits
from serving.protocol import InferRequest, answer, parse_request
from serving.tensors import bytes_array

LIMITS = RequestLimits(elements=1 << 16)
OUTPUTS = (TensorSpec(name="y", datatype="FP32", shape=(-1, 10)),)
WIDTHS = (3, 1000)
"""The second is longer than what orjson reads here."""


def spec(datatype: Any = "FP32", width: int = 3) -> TensorSpec:
    return TensorSpec(name="x", datatype=datatype, shape=(-1, width))


def request(width: int = 3, **changes: Any) -> dict[str, Any]:
    tensor = {"name": "x", "shape": [2, width], "datatype": "FP32", "data": [0.5] * (2 * width), **changes}
    return {"inputs": [tensor]}


def agree(body: bytes, spec_: TensorSpec, json_bytes: int = -1) -> bool:
    """Whether the quick way took it; what it takes is what the strict one reads."""
    reader = QuickReader((spec_,), OUTPUTS, LIMITS)
    strict: InferRequest | ServingError
    try:
        strict = parse_request(body, (spec_,), OUTPUTS, LIMITS, json_bytes)
    except ServingError as error:
        strict = error
    for _ in range(2):  # what was read before is looked up
        quick = reader(body, json_bytes)
        array = None if quick is None else reader.array([quick])
        if quick is None or array is None:
            return False
        assert isinstance(strict, InferRequest), f"taken, but refused with {strict}"
        assert quick[2:] == (strict.outputs, strict.id, strict.binary, strict.timeout)
        assert quick.rows == strict.rows
        for found in (array, reader.array([quick, quick])):
            assert found is not None
            assert found.dtype == strict.inputs["x"].dtype
            np.testing.assert_array_equal(found[: quick.rows], strict.inputs["x"])
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


def binary(array: Any, **more: Any) -> tuple[bytes, int]:
    tensor: dict[str, Any] = {"name": "x", "shape": list(array.shape), "datatype": "FP32"}
    tensor["parameters"] = {"binary_data_size": array.nbytes}
    head = orjson.dumps({"inputs": [tensor], **more})
    return head + array.tobytes(), len(head)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_raw_tensor_is_read_quickly(width: int) -> None:
    array = np.random.default_rng(0).standard_normal((2, width)).astype(np.float32)
    assert agree(*_with(spec(width=width), binary(array)))
    wishes: dict[str, Any] = {"id": "7", "parameters": {"binary_data_output": True, "timeout": 9}}
    assert agree(*_with(spec(width=width), binary(array, **wishes)))
    content, json_bytes = binary(array)
    for wrong in (content + b"x", content[:-1], content[:json_bytes]):
        assert not agree(wrong, spec(width=width), json_bytes)
    for number in (np.nan, np.inf):
        array[1, 0] = number
        assert not agree(*_with(spec(width=width), binary(array)))
    gaps = spec(width=width).model_copy(update={"missing": True})
    assert not agree(*_with(gaps, binary(array))), "where a value may be missing the strict way looks which"


def _with(spec_: TensorSpec, made: tuple[bytes, int]) -> tuple[bytes, TensorSpec, int]:
    return made[0], spec_, made[1]


ARRAYS = hnp.arrays(
    st.sampled_from([np.dtype(kind) for kind in ("<f2", "<f4", "<f8", "u1", "<i8", "?")]),
    hnp.array_shapes(max_dims=3, max_side=3),
)


@given(st.dictionaries(st.text(max_size=3), ARRAYS, max_size=3), st.none() | st.text(max_size=3), st.data())
def test_answers_are_those_of_the_strict_way(outputs: Any, identity: str | None, data: st.DataObject) -> None:
    if data.draw(st.booleans()):
        outputs = {**outputs, "text": bytes_array([b"a", b"\xff"], (2,))}
    wished = frozenset(data.draw(st.lists(st.sampled_from(sorted(outputs)), max_size=3)) if outputs else ())
    writer = AnswerWriter("m", "3")
    try:
        wanted = answer("m", "3", outputs, identity, wished)
    except Unsupported:
        with pytest.raises(Unsupported):
            writer(outputs, identity, wished)
        return
    for _ in range(2):
        made, json_bytes = writer(outputs, identity, wished)
        assert json_bytes in (wanted[1], len(made)) if not wished else json_bytes > 0
        split, expected = (x if x > 0 else None for x in (json_bytes, wanted[1]))
        assert orjson.loads(made[:split]) == orjson.loads(wanted[0][:expected])
        assert made[split or len(made) :] == wanted[0][expected or len(wanted[0]) :]


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


def test_numbers_whose_sum_is_too_large_are_numbers_all_the_same() -> None:
    assert agree(orjson.dumps(request(3, datatype="FP64", data=[1.7e308] * 6)), spec("FP64", 3))


@given(st.binary(max_size=100), st.integers(0, 6000), st.integers(0, 255))
def test_damaged_bodies_are_read_alike_or_left_alone(data: bytes, place: int, byte: int) -> None:
    good = bytearray(orjson.dumps(request(1000)))
    good[place % len(good)] = byte
    for body in (data, bytes(good), bytes(good[: place % len(good)])):
        agree(body, spec(width=1000))
