"""Tables of tokens and positions as bytes: what is looked up is the same but for rounding, and nothing else changes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, numpy_helper

from tasks.onnx_models.onnx_cost import onnx_cost
from tasks.onnx_models.onnx_graph import strip
from tasks.quantize.table_rows import round_tables

IDS = {"ids": np.array([[3, 0, 299], [7, 7, 1]], np.int64)}


def tables(body: str, *, rows: int = 300, columns: int = 16) -> ModelProto:
    """A graph with a table of tokens and one of places; an empty row among them."""
    text = f"""<ir_version: 8, opset_import: ["" : 20]> g (int64[N, T] ids) => (float[N, T, {columns}] y)
    <int64 zero = {{0}}, int64[1] none = {{0}}, int64[1] three = {{3}}> {{ {body} }}"""
    model = onnx.parser.parse_model(text)
    draw = np.random.default_rng(0)
    for name, count in (("words", rows), ("places", rows)):
        values = draw.standard_normal((count, columns)).astype(np.float32)
        values[7] = 0
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    return model


def answers(model: ModelProto) -> np.ndarray:
    found: np.ndarray = onnxruntime.InferenceSession(strip(model)).run(None, dict(IDS))[0]
    return found


TAKEN = "w = Gather(words, ids) p = Slice(places, none, three, none) y = Add(w, p)"


def test_looked_up_rows_differ_by_rounding_alone() -> None:
    model = tables(TAKEN)
    wanted, cost, size = answers(model), onnx_cost(model), model.ByteSize()
    assert round_tables(model) == ("Gather words [300, 16]", "Slice places [300, 16]")
    found = answers(model)
    assert 0 < np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()
    assert onnx_cost(model) == cost, "scales are no parameters"
    assert model.ByteSize() < 0.4 * size
    assert {i.data_type for i in model.graph.initializer if i.name.endswith("_rows")} == {TensorProto.INT8}


def test_four_bits_are_half_of_that_again() -> None:
    model = tables(TAKEN, columns=64)
    wanted, cost, size = answers(model), onnx_cost(model), model.ByteSize()
    round_tables(model, bits=4)
    found = answers(model)
    assert 0 < np.abs(found - wanted).mean() < 0.12 * np.abs(wanted).mean()
    assert onnx_cost(model).parameters == cost.parameters
    assert model.ByteSize() < 0.17 * size
    assert answers(model).tobytes() == found.tobytes()


@pytest.mark.parametrize(
    "body",
    [
        "w = Gather(words, ids) p = MatMul(w, turned) y = MatMul(p, words)",
        "w = Gather<axis = 1>(words, zero) y = Gather(words, ids)",
        "w = Slice(words, none, three, one) y = Gather(words, ids)",
        "w = Add(words, words) y = Gather(words, ids)",
    ],
    ids=["tied head", "columns", "sliced columns", "another use"],
)
def test_a_table_with_another_use_stays_as_it_is(body: str) -> None:
    model = tables(body, columns=300)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((300, 300), np.float32).T, "turned"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "one"))
    before = model.SerializeToString(deterministic=True)
    assert not any("words" in label for label in round_tables(model))
    assert model.SerializeToString(deterministic=True) == before


def test_small_tables_stay_as_they_are() -> None:
    model = tables(TAKEN, columns=8)
    assert round_tables(model) == ()


def test_ids_outside_the_table_are_an_error() -> None:
    model = tables(TAKEN)
    round_tables(model)
    session = onnxruntime.InferenceSession(strip(model))
    with pytest.raises(Exception, match="out of data bounds"):
        session.run(None, {"ids": np.array([[300, 0, 0]])})
