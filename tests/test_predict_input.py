"""Rows out of what users have: every form, and what is wrong in each, named."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from flows.commands.command_predict import _portions
from flows.commands.predict_input import (
    csv_samples,
    form_of,
    is_request,
    json_samples,
    numpy_samples,
    parsed_json,
)
from model_registry.datatypes import Datatype
from model_registry.variant import TensorSpec
from serving.exceptions import InvalidRequest


def spec(name: str, datatype: Datatype, *shape: int, missing: bool = False) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=(-1, *shape), missing=missing)


TABLE = [spec("features", "FP32", 2, missing=True)]
COLUMNS = [spec("n", "INT64"), spec("text", "BYTES", 1), spec("yes", "BOOL")]


def npy(values: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def npz(**values: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **values)
    return stream.getvalue()


def test_the_suffix_or_the_beginning_says_what_it_is() -> None:
    assert [form_of(b"x", suffix) for suffix in (".json", ".CSV", ".npy", ".npz")] == ["json", "csv", "npy", "npz"]
    found = [form_of(given, "") for given in (b" [1]", b"{}", npy([1]), npz(x=[1]), b"a,b\n1,2\n")]
    assert found == ["json", "json", "npy", "npz", "csv"]


def test_json_is_a_row_rows_or_a_request() -> None:
    assert json_samples([1, 2], TABLE) == {"features": [[1, 2]]}
    assert json_samples([[1, 2], [3, None]], TABLE) == {"features": [[1, 2], [3, None]]}
    assert json_samples({"features": [1, 2]}, TABLE) == {"features": [[1, 2]]}
    row = {"n": 1, "text": ["a"], "yes": True}
    assert json_samples([row, row], COLUMNS) == {"n": [1, 1], "text": [["a"], ["a"]], "yes": [True, True]}
    assert is_request({"inputs": [{"name": "x", "datatype": "FP32"}]})
    assert not any(map(is_request, ({"inputs": [1, 2]}, {"x": 1}, [1])))


IMAGE = [spec("image", "FP32", 1, 2, 3)]


@pytest.mark.parametrize("shape", [(1, 2, 3), (2, 3), (1, 6), (6, 1), (2, 3, 1)])
def test_rows_of_several_dimensions_may_be_flat(shape: tuple[int, ...]) -> None:
    """In every form; and nested ones mean what they meant."""
    inputs, flat = [spec("image", "FP32", *shape)], [float(n) for n in range(6)]
    row = np.array(flat).reshape(shape)
    nested, one, two = row.tolist(), row[None].tolist(), np.stack([row, row]).tolist()
    assert json_samples(flat, inputs) == json_samples([flat], inputs) == {"image": one}
    assert json_samples([flat, flat], inputs) == {"image": two}
    assert json_samples({"image": flat}, inputs) == json_samples([{"image": nested}], inputs) == {"image": one}
    assert json_samples(nested, inputs) == json_samples(one, inputs) == {"image": one}
    assert json_samples(two, inputs) == {"image": two}
    assert csv_samples(b"a,b,c,d,e,f\n0,1,2,3,4,5\n", inputs) == {"image": one}
    for given, wanted in [(flat, one), ([flat, flat], two), (nested, one), (one, one), (two, two)]:
        assert numpy_samples(npy(given), inputs)["image"].tolist() == wanted
    assert numpy_samples(npz(image=[flat, flat]), inputs)["image"].tolist() == two


def test_what_is_not_as_long_as_a_row_is_not_cut() -> None:
    assert json_samples([1, 2, 3], IMAGE) == {"image": [1, 2, 3]}
    assert json_samples([[1, 2, 3, 4, 5, 6], [1]], IMAGE) == {"image": [[1, 2, 3, 4, 5, 6], [1]]}
    assert json_samples([1, 2], [spec("x", "FP32", -1, 2)]) == {"x": [1, 2]}, "any number of pairs: not known"
    with pytest.raises(InvalidRequest, match="are not the model's inputs"):
        csv_samples(b"a,b\n1,2\n", IMAGE)


def test_csv_has_a_column_per_input_or_is_a_table() -> None:
    assert csv_samples(b'yes,n,text\ntrue,1,"a,b"\n0,2,\n', COLUMNS) == {
        "yes": [True, False],
        "n": [1, 2],
        "text": [["a,b"], [""]],
    }
    assert csv_samples(b"a,b\n1,2.5\n,4\n\n", TABLE) == {"features": [[1, 2.5], [None, 4]]}


def test_numpy_s_files_hold_rows() -> None:
    for given in ([[1, 2]], [1, 2]):
        assert numpy_samples(npy(given), TABLE)["features"].tolist() == [[1, 2]]
    found = numpy_samples(npz(n=[1], yes=[True]), COLUMNS)
    assert {name: values.tolist() for name, values in found.items()} == {"n": [1], "yes": [True]}


@pytest.mark.parametrize(
    ("read", "given", "inputs", "text"),
    [
        (json_samples, [], TABLE, "no row"),
        (json_samples, [1], COLUMNS, "give rows by these names"),
        (json_samples, [{"features": [1, 2]}, 3], TABLE, "row 2 must have .* got int"),
        (csv_samples, b"a,b\n", TABLE, "no row under its header"),
        (csv_samples, b"a,b\n1\n", TABLE, "line 2 has 1 fields, the header has 2"),
        (csv_samples, b'a,b\n"1\n', TABLE, "not valid CSV"),
        (csv_samples, b"\xff,b\n1,2\n", TABLE, "not valid CSV in UTF-8"),
        (csv_samples, b"n,text\n1,a\n", COLUMNS, r"the columns \['n', 'text'\] are not the model's inputs"),
        (csv_samples, b"yes,n,text\nmaybe,1,a\n", COLUMNS, "line 2, column 'yes': 'maybe' is no BOOL"),
        (csv_samples, b"yes,n,text\n1,1.5,a\n", COLUMNS, "line 2, column 'n': '1.5' is no INT64"),
        (csv_samples, b"yes,n,text\n1,,a\n", COLUMNS, "'' is no INT64: the model was not trained with missing values"),
        (numpy_samples, b"\x93NUMPY", TABLE, "no file of numpy's arrays"),
        (numpy_samples, npy([1])[:-1], TABLE, "no file of numpy's arrays"),
        (numpy_samples, npy([1]), COLUMNS, "give rows by these names"),
        (lambda given, _: parsed_json(given), b"[" * 100_000, TABLE, "not valid JSON"),
    ],
)
def test_what_is_wrong_is_named(read: Any, given: Any, inputs: list[TensorSpec], text: str) -> None:
    with pytest.raises(InvalidRequest, match=text):
        read(given, inputs)


def test_python_objects_in_a_file_are_not_loaded() -> None:
    stream = io.BytesIO()
    np.save(stream, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InvalidRequest, match="no file of numpy's arrays"):
        numpy_samples(stream.getvalue(), TABLE)


def test_many_rows_go_in_portions() -> None:
    small = {"features": [[1, 2]] * 2050}
    assert [len(portion["features"]) for portion in _portions(small, TABLE)] == [1024, 1024, 2]
    images = {"image": np.zeros((5, 3, 300, 300), np.float32)}
    assert [len(portion["image"]) for portion in _portions(images, [spec("image", "FP32", 3, 300, 300)])] == [1] * 5
    fixed = [TensorSpec(name="features", datatype="FP32", shape=(2, 2))]
    assert [len(portion["features"]) for portion in _portions({"features": [[1, 2]] * 4}, fixed)] == [2, 2]
