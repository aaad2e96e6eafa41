"""The Open Inference Protocol in JSON, read as the strictest reader would."""

from __future__ import annotations

import json
import math
import tracemalloc
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from model_registry.variant import TensorSpec
from serving.exceptions import InvalidRequest, ServingError, Unsupported
from serving.limits import RequestLimits
from serving.protocol import InferRequest, answer, parse_request
from serving.tensors import NUMPY, MalformedTensor, bytes_array, from_raw, to_raw

X = TensorSpec(name="x", datatype="FP32", shape=(-1, 2))
Y = TensorSpec(name="y", datatype="FP32", shape=(-1, 3))
Z = TensorSpec(name="z", datatype="BYTES", shape=(-1,))
LIMITS = RequestLimits(elements=1000)
JSON_DATATYPES = sorted(set(NUMPY) - {"FP16"})


def parse(body: Any, inputs: tuple[TensorSpec, ...] = (X,), limits: RequestLimits = LIMITS) -> InferRequest:
    return parse_request(body if isinstance(body, bytes) else orjson.dumps(body), inputs, (Y, Z), limits)


def tensor(**changes: Any) -> dict[str, Any]:
    made = {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1, 2.5, 3, 4], **changes}
    return {name: value for name, value in made.items() if value is not ...}


def body(**changes: Any) -> dict[str, Any]:
    return {"inputs": [tensor(**changes)]}


def test_flat_and_nested_data_are_the_same_rows() -> None:
    flat = parse(body()).inputs["x"]
    nested = parse(body(data=[[1, 2.5], [3, 4]])).inputs["x"]
    assert flat.dtype == np.float32
    assert flat.tolist() == nested.tolist() == [[1.0, 2.5], [3.0, 4.0]]


def test_optional_members_and_unknown_ones() -> None:
    asked = parse(
        {
            "id": "7",
            "parameters": {"timeout": 5, "priority": 0, "binary_data_output": False},
            "inputs": [tensor(parameters={"content_type": "np"})],
            "outputs": [{"name": "z", "parameters": {"binary_data": False}}, {"name": "y"}],
            "raw_output": 1,
        }
    )
    assert asked.id == "7"
    assert (asked.outputs, asked.timeout, asked.binary, asked.rows) == (("z", "y"), 5, frozenset(), 2)
    assert parse({**body(), "id": None, "parameters": None, "outputs": None}).outputs == ("y", "z")
    assert parse({**body(), "outputs": []}).outputs == ("y", "z")


def test_null_is_a_missing_value_where_the_model_was_trained_with_some() -> None:
    gaps = TensorSpec(name="x", datatype="FP32", shape=(-1, 2), missing=True)
    found = parse(body(data=[[1, None], [None, 4]]), (gaps,)).inputs["x"]
    np.testing.assert_array_equal(found, [[1, np.nan], [np.nan, 4]])
    assert found.dtype == np.float32
    assert parse(body(), (gaps,)).inputs["x"].tolist() == [[1.0, 2.5], [3.0, 4.0]]
    for data, says in (([None, 1e39, 1, 2], "does not fit FP32"), ([None, "x", 1, 2], "must be numbers, got 'x'")):
        with pytest.raises(InvalidRequest, match=says):
            parse(body(data=data), (gaps,))
    whole = TensorSpec(name="x", datatype="INT64", shape=(-1, 2), missing=True)
    with pytest.raises(InvalidRequest, match="must be integers, got None"):
        parse(body(data=[1, None, 3, 4], datatype="INT64"), (whole,))


BAD: dict[str, tuple[Any, str]] = {
    "empty": (b"", "not valid JSON"),
    "cut off": (b'{"inputs": [', "not valid JSON"),
    "not UTF-8": (b'{"id": "\xff"}', "not valid JSON"),
    "NaN literal": (b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[NaN,1]}]}', "not valid JSON"),
    "too deep": (b'{"inputs":' + b"[" * 5000 + b"]" * 5000 + b"}", "not valid JSON"),
    "an array": ([], "must be a JSON object, got \\[\\]"),
    "a number": (7, "must be a JSON object, got 7"),
    "no inputs": ({}, "inputs must be a list of tensors, got None"),
    "inputs an object": ({"inputs": {}}, "inputs must be a list"),
    "inputs empty": ({"inputs": []}, "input 'x' is missing"),
    "input a string": ({"inputs": ["x"]}, "each of inputs must be an object"),
    "name missing": (body(name=...), "name of each of inputs must be a string, got None"),
    "name a number": (body(name=1), "must be a string, got 1"),
    "name unknown": (body(name="q"), r"no input 'q'; it has \['x'\]"),
    "twice": ({"inputs": [tensor(), tensor()]}, "'x' is given twice"),
    "datatype missing": (body(datatype=...), "must be FP32, got None"),
    "datatype wrong": (body(datatype="FP64"), "must be FP32, got 'FP64'"),
    "shape missing": (body(shape=...), "list of integers, got None"),
    "shape a string": (body(shape="2,2"), "list of integers"),
    "shape of floats": (body(shape=[2.0, 2]), "list of integers"),
    "shape of booleans": (body(shape=[True, 2]), "list of integers"),
    "shape negative": (body(shape=[-1, 2]), "at least 1"),
    "shape zero": (body(shape=[0, 2], data=[]), "at least 1"),
    "shape too long": (body(shape=[1] * 17), "at most 16 dimensions"),
    "shape not the model's": (body(shape=[2, 3]), r"must be \[-1, 2\]"),
    "shape of another rank": (body(shape=[4]), r"must be \[-1, 2\]"),
    "shape overflowing": (body(shape=[2**62, 2], data=[1]), "9223372036854775808 elements, at most 1000"),
    "too many elements": (body(shape=[501, 2], data=[1]), "1002 elements, at most 1000"),
    "data missing": (body(data=...), "must be a list"),
    "data a string": (body(data="1234"), "must be a list"),
    "data an object": (body(data={"0": 1}), "must be a list"),
    "data short": (body(data=[1, 2, 3]), "has 3 elements, its shape .* takes 4"),
    "data long": (body(data=[1, 2, 3, 4, 5]), "has 5 elements"),
    "data empty": (body(data=[]), "has 0 elements"),
    "data ragged": (body(data=[[1, 2], [3]]), "nested as its shape"),
    "data half nested": (body(data=[[1, 2], 3, 4]), "nested as its shape"),
    "data nested too deep": (body(data=[[[1], [2]], [[3], [4]]]), r"must be numbers, got \[1\]"),
    "data of the other way": (body(shape=[1, 2], data=[[1], [2]]), "nested as its shape"),
    "strings for numbers": (body(data=["1", "2", "3", "4"]), "must be numbers, got '1'"),
    "null for a number": (body(data=[1, None, 3, 4]), "got None: the model was not trained with missing values"),
    "boolean for a number": (body(data=[1, True, 3, 4]), "must be numbers, got True"),
    "too large for FP32": (body(data=[1, 1e39, 3, 4]), "does not fit FP32"),
    "id a number": ({**body(), "id": 7}, "id must be a string"),
    "id too long": ({**body(), "id": "x" * 1025}, "1025 characters"),
    "parameters a list": ({**body(), "parameters": []}, "parameters of the request must be an object"),
    "parameter an object": ({**body(), "parameters": {"a": {}}}, "parameter 'a' of the request"),
    "input parameter null": (body(parameters={"a": None}), "parameter 'a' of input 'x'"),
    "outputs an object": ({**body(), "outputs": {}}, "outputs must be a list"),
    "output unknown": ({**body(), "outputs": [{"name": "q"}]}, r"no output 'q'; it has \['y', 'z'\]"),
    "output twice": ({**body(), "outputs": [{"name": "y"}, {"name": "y"}]}, "output 'y' is given twice"),
    "output too large": (body(shape=[400, 2], data=[0] * 800), "output 'y' would hold 1200 elements"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_are_refused_by_name(case: str) -> None:
    sent, message = BAD[case]
    with pytest.raises(InvalidRequest, match=message):
        parse(sent)


@pytest.mark.parametrize(
    ("datatype", "value"),
    [("UINT8", 256), ("UINT8", -1), ("INT8", 128), ("UINT32", 2**32), ("INT64", 2**63), ("UINT64", -1)],
)
def test_integers_must_fit(datatype: Any, value: int) -> None:
    spec = TensorSpec(name="x", datatype=datatype, shape=(-1,))
    with pytest.raises(InvalidRequest, match=f"does not fit {datatype}"):
        parse(body(datatype=datatype, shape=[1], data=[value]), (spec,))


def test_integers_and_booleans_are_not_floats() -> None:
    for datatype, value, wanted in (("INT32", 1.0, "integers"), ("BOOL", 1, "true or false"), ("BYTES", 1, "strings")):
        spec = TensorSpec(name="x", datatype=datatype, shape=(-1,))
        with pytest.raises(InvalidRequest, match=f"must be {wanted}"):
            parse(body(datatype=datatype, shape=[1], data=[value]), (spec,))


@pytest.mark.parametrize(
    "parameters",
    [
        {"priority": 1},
        {"sequence_id": 7},
        {"triton_enable_empty_final_response": True},
        {"who": "me"},
        {"timeout": "5"},
    ],
)
def test_a_parameter_is_honoured_or_refused_and_never_passed_over(parameters: dict[str, Any]) -> None:
    with pytest.raises(ServingError, match=next(iter(parameters))):
        parse({**body(), "parameters": parameters})
    with pytest.raises(Unsupported, match="shared_memory_region"):
        parse(body(parameters={"shared_memory_region": "r"}))
    with pytest.raises(Unsupported, match="classification"):
        parse({**body(), "outputs": [{"name": "y", "parameters": {"classification": 3}}]})


def test_what_has_no_json_form_says_so() -> None:
    half = TensorSpec(name="x", datatype="FP16", shape=(-1,))
    with pytest.raises(Unsupported, match="binary tensor data"):
        parse(body(datatype="FP16", shape=[1], data=[1.0]), (half,))
    with pytest.raises(Unsupported, match="FP16"):
        parse_request(orjson.dumps(body()), (X,), (half,), LIMITS)
    asked = parse_request(orjson.dumps({**body(), "parameters": {"binary_data_output": True}}), (X,), (half,), LIMITS)
    assert asked.binary == {"x"}


# -- binary tensors ---------------------------------------------------------------------------------------------
def packed(request: Any, *raws: bytes) -> tuple[bytes, int]:
    """A body with raw tensors behind its JSON part, and that part's length."""
    head = orjson.dumps(request)
    return b"".join([head, *raws]), len(head)


def raw_tensor(size: int, **changes: Any) -> dict[str, Any]:
    made = tensor(parameters={"binary_data_size": size}, **changes)
    del made["data"]
    return made


TWO_BY_TWO = np.array([[1, 2.5], [3, 4]], dtype=np.float32)


def test_raw_tensors_come_in_the_order_in_which_they_are_named() -> None:
    specs = (
        X,
        TensorSpec(name="n", datatype="INT64", shape=(-1,)),
        TensorSpec(name="t", datatype="BYTES", shape=(-1,)),
    )
    texts = bytes_array([b"\xff", b""], (2,))
    request = {
        "inputs": [
            raw_tensor(9, name="t", datatype="BYTES", shape=[2]),
            raw_tensor(16),
            tensor(name="n", datatype="INT64", shape=[2], data=[7, 8]),
        ]
    }
    content, json_bytes = packed(request, to_raw(texts), TWO_BY_TWO.tobytes())
    found = parse_request(content, specs, (Y, Z), LIMITS, json_bytes).inputs
    assert found["x"].tolist() == TWO_BY_TWO.tolist()
    assert (found["n"].tolist(), found["t"].tolist()) == ([7, 8], [b"\xff", b""])


@pytest.mark.parametrize(
    ("request_", "raw", "message"),
    [
        ({"inputs": [raw_tensor(16)]}, b"", "binary_data_size of input 'x' is 16, but 0 bytes are left"),
        ({"inputs": [raw_tensor(16)]}, bytes(17), "1 bytes of the body belong to no input"),
        ({"inputs": [raw_tensor(8)]}, bytes(8), "takes 16 bytes, got 8"),
        ({"inputs": [raw_tensor(-1)]}, bytes(16), "whole number"),
        ({"inputs": [raw_tensor(True)]}, bytes(16), "whole number"),
        ({"inputs": [{**raw_tensor(16), "data": [1, 2, 3, 4]}]}, bytes(16), "one of the two"),
        ({"inputs": [raw_tensor(16)]}, np.full(4, np.nan, np.float32).tobytes(), "not trained with missing values"),
        ({"inputs": [raw_tensor(16)]}, np.full(4, np.inf, np.float32).tobytes(), "NaN or infinity"),
        ({"inputs": [raw_tensor(2**62, shape=[2**60, 2])]}, b"", "elements"),
    ],
)
def test_bad_raw_tensors_are_refused_by_name(request_: Any, raw: bytes, message: str) -> None:
    content, json_bytes = packed(request_, raw)
    with pytest.raises(InvalidRequest, match=message):
        parse_request(content, (X,), (Y, Z), LIMITS, json_bytes)


def test_raw_tensors_need_the_header_that_says_where_they_begin() -> None:
    content, _ = packed({"inputs": [raw_tensor(16)]})
    with pytest.raises(InvalidRequest, match="inference-header-content-length"):
        parse_request(content, (X,), (Y, Z), LIMITS)
    with pytest.raises(InvalidRequest, match="but the body has"):
        parse_request(content, (X,), (Y, Z), LIMITS, len(content) + 1)


def test_a_raw_request_is_one_row_of_the_only_input() -> None:
    image = TensorSpec(name="i", datatype="UINT8", shape=(-1, 2, 3))
    asked = parse_request(bytes(range(6)), (image,), (Y, Z), LIMITS, 0)
    assert asked.inputs["i"].tolist() == [[[0, 1, 2], [3, 4, 5]]]
    assert asked.binary == {"y", "z"} and asked.rows == 1
    free = TensorSpec(name="i", datatype="INT32", shape=(-1, -1, 2))
    assert parse_request(bytes(16), (free,), (Y, Z), LIMITS, 0).inputs["i"].shape == (1, 2, 2)
    text = TensorSpec(name="i", datatype="BYTES", shape=(-1,))
    assert parse_request(b"hello", (text,), (Y, Z), LIMITS, 0).inputs["i"].tolist() == [b"hello"]
    for specs, message in (((image, X), "one input"), ((X,), "takes 8 bytes, got 7")):
        with pytest.raises(InvalidRequest, match=message):
            parse_request(bytes(7), specs, (Y, Z), LIMITS, 0)


def test_outputs_are_answered_in_the_form_asked_for() -> None:
    halves = np.array([[1, np.nan]], dtype=np.float16)
    made, json_bytes = answer("m", "3", {"h": halves, "y": TWO_BY_TWO}, None, frozenset({"h"}))
    head = json.loads(made[:json_bytes])
    assert head["outputs"][0] == {
        "name": "h",
        "datatype": "FP16",
        "shape": [1, 2],
        "parameters": {"binary_data_size": 4},
    }
    assert made[json_bytes:] == halves.tobytes()
    assert head["outputs"][1]["data"] == [1, 2.5, 3, 4]
    wishes = [{"name": "z", "parameters": {"binary_data": False}}, {"name": "y"}]
    asked = parse({**body(), "parameters": {"binary_data_output": True}, "outputs": wishes})
    assert asked.binary == {"y"}


def test_a_body_of_nothing_but_brackets_is_refused_before_it_is_memory() -> None:
    content = b'{"inputs": [' + b"[]," * (1 << 20) + b"[]]}"
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match="lists and objects"):
            parse_request(content, (X,), (Y,), LIMITS)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_inputs_must_agree_in_their_batch() -> None:
    other = TensorSpec(name="b", datatype="FP32", shape=(-1,))
    two = {"inputs": [tensor(), tensor(name="b", shape=[3], data=[1, 2, 3])]}
    with pytest.raises(InvalidRequest, match=r"agree in their first dimension.*'x': 2, 'b': 3"):
        parse(two, (X, other))


def test_a_client_s_text_in_errors_is_short_and_escaped() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(body(name="a\n\x1b[31m" + "x" * 10000))
    assert len(str(caught.value)) < 200
    assert str(caught.value).isprintable()


def test_an_overflowing_shape_allocates_nothing() -> None:
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest):
            parse(body(shape=[2**40, 2], data=[1]))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_answers_stay_json_with_nan_and_infinity() -> None:
    made, _ = answer("m", "3", {"y": np.array([[np.nan, np.inf, -np.inf, 0.1]], dtype=np.float32)}, "7")

    def never(constant: str) -> float:
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads(made, parse_constant=never) == {
        "model_name": "m",
        "model_version": "3",
        "id": "7",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 4], "data": [None, None, None, 0.1]}],
    }
    assert b'"id"' not in answer("m", "3", {}, None)[0]


def test_an_fp16_answer_is_refused() -> None:
    with pytest.raises(Unsupported, match="FP16"):
        answer("m", "1", {"y": np.zeros(1, dtype=np.float16)}, None)


# -- properties -------------------------------------------------------------------------------------------------
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
members = st.sampled_from(["name", "shape", "datatype", "data", "parameters"])


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_with_a_named_error(data: bytes) -> None:
    with pytest.raises(ServingError):
        parse(data)


@settings(max_examples=200)
@given(st.data())
def test_a_request_with_one_member_changed_is_parsed_or_refused_and_nothing_else(data: st.DataObject) -> None:
    request = {"id": "1", "inputs": [tensor()], "outputs": [{"name": "y"}]}
    where: dict[str, Any] = data.draw(st.sampled_from([request, request["inputs"][0], request["outputs"][0]]))
    where[data.draw(st.sampled_from(sorted(where)))] = data.draw(json_values)
    try:
        parsed = parse(request)
    except ServingError as error:
        assert str(error)
        assert error.status in (400, 501)
    else:
        assert parsed.inputs["x"].dtype == np.float32
        assert parsed.inputs["x"].size <= LIMITS.elements


@settings(max_examples=200)
@given(st.data(), st.sampled_from(JSON_DATATYPES), st.booleans())
def test_what_is_sent_is_what_the_model_gets_and_what_it_answers_is_what_is_received(
    data: st.DataObject, datatype: Any, nested: bool
) -> None:
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=4, max_side=4))
    if datatype == "BYTES":
        texts = data.draw(st.lists(st.text(max_size=5), min_size=math.prod(shape), max_size=math.prod(shape)))
        array = bytes_array([text.encode() for text in texts], shape)
        flat: list[Any] = texts
    else:
        numbers: dict[str, Any] = {"allow_nan": False, "allow_infinity": False} if datatype[:2] == "FP" else {}
        array = data.draw(hnp.arrays(NUMPY[datatype], shape, elements=numbers or None))
        flat = array.ravel().tolist()
    sent: list[Any] = flat
    if nested:
        for size in reversed(shape[1:]):
            sent = [sent[i : i + size] for i in range(0, len(sent), size)]
    spec = TensorSpec(name="x", datatype=datatype, shape=(-1, *shape[1:]))
    got = parse(body(datatype=datatype, shape=list(shape), data=sent), (spec,)).inputs["x"]
    assert got.dtype == array.dtype
    assert got.shape == shape
    assert got.tolist() == array.tolist()

    received = json.loads(answer("m", "1", {"y": got}, None)[0])["outputs"][0]
    assert received["datatype"] == datatype
    assert tuple(received["shape"]) == shape
    if datatype == "FP32":
        assert np.array(received["data"], dtype=np.float32).tolist() == array.ravel().tolist()
    else:
        assert received["data"] == flat


@given(st.data(), st.sampled_from(sorted(NUMPY)))
def test_raw_form_round_trips_and_wrong_sizes_are_refused(data: st.DataObject, datatype: str) -> None:
    shape = data.draw(hnp.array_shapes(max_dims=3, max_side=3))
    if datatype == "BYTES":
        elements = st.lists(st.binary(max_size=4), min_size=math.prod(shape), max_size=math.prod(shape))
        array = bytes_array(data.draw(elements), shape)
    else:
        array = data.draw(hnp.arrays(NUMPY[datatype], shape))
    raw = to_raw(array)
    assert to_raw(from_raw(memoryview(raw), datatype, shape)) == raw
    for wrong in (raw[:-1], raw + b"\0"):
        with pytest.raises(MalformedTensor):
            from_raw(memoryview(wrong), datatype, shape)
