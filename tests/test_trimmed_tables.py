"""Tables without the rows that training never looked up: the same answers for what it saw, one row for all else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, numpy_helper

from tasks.onnx_models.onnx_graph import strip
from tasks.quantize.agreement import top_answers
from tasks.quantize.quantized_forms import FormBuilder, Quantizing
from tasks.quantize.trimmed_tables import TrimmedTable, trim_tables

TEXT = """<ir_version: 8, opset_import: ["" : 20]>
g (int64[N, T] tokens) => (float[N, T, 16] y) { %s }"""
WORDS = np.random.default_rng(0).standard_normal((400, 16)).astype(np.float32)
SEEN = {"tokens": np.array([[5, 9, 0, 7], [300, 9, 5, 0]])}


def model(body: str = "w = Gather(words, tokens) y = Relu(w)") -> ModelProto:
    made: ModelProto = onnx.parser.parse_model(TEXT % body)
    made.graph.initializer.append(numpy_helper.from_array(WORDS, "words"))
    return made


def answers(made: ModelProto, tokens: list[list[int]]) -> np.ndarray:
    found: np.ndarray = onnxruntime.InferenceSession(strip(made)).run(None, {"tokens": np.array(tokens)})[0]
    return found


def test_what_was_seen_is_answered_to_the_bit_and_all_else_by_one_row() -> None:
    whole, trimmed = model(), model()
    assert trim_tables(trimmed, SEEN, {}) == (TrimmedTable("words", "tokens", 400, 5, 0.0),)
    known = [[5, 300, 0, 9, 7]]
    assert answers(trimmed, known).tobytes() == answers(whole, known).tobytes()
    others = answers(trimmed, [[8, 399]])
    dropped = np.delete(WORDS, [0, 5, 7, 9, 300], axis=0).mean(0)
    assert np.allclose(others, np.maximum(dropped, 0)[None, None], atol=1e-6)
    with pytest.raises(Exception, match="out of data bounds"):
        answers(trimmed, [[400]])


def test_first_rows_are_kept_until_held_out_texts_miss_hardly_any() -> None:
    draw = np.random.default_rng(2)
    usual, rare = draw.integers(0, 40, 3000), np.array([60, 61, 350, 351, 352, 353, 354, 355])
    held_out = {"tokens": np.concatenate([usual, rare])}
    (table,) = trim_tables(model(), {"tokens": np.arange(0, 40, 2)}, held_out)
    assert (table.kept, table.unknown) == (62, 6 / 3008), (
        "two in a thousand may be missing, those with the highest numbers"
    )


def test_bytes_are_those_of_the_rows_that_stay() -> None:
    trimmed = model()
    trim_tables(trimmed, {"tokens": np.arange(100)[None]}, {})
    assert len(strip(trimmed)) < 0.4 * len(strip(model()))


@pytest.mark.parametrize(
    ("body", "seen"),
    [
        ("w = Gather(words, tokens) y = Relu(w)", {"tokens": np.arange(390)[None]}),
        ("w = Gather(words, tokens) y = Relu(w)", {"other": np.array([[1]])}),
        ("w = Gather(words, tokens) y = Relu(w)", {"tokens": np.array([[400]])}),
        ("w = Gather(words, tokens) s = Gather(words, tokens) t = Transpose(words) y = Add(w, s)", SEEN),
        ("i = Abs(tokens) w = Gather(words, i) y = Relu(w)", SEEN),
    ],
    ids=["nearly all", "another input", "beyond the table", "another use", "not the input itself"],
)
def test_a_table_that_cannot_be_trimmed_stays_as_it_is(body: str, seen: dict[str, np.ndarray]) -> None:
    made = model(body)
    before = made.SerializeToString(deterministic=True)
    assert trim_tables(made, seen, {}) == ()
    assert made.SerializeToString(deterministic=True) == before


def test_forms_of_a_trimmed_model_are_smaller(tmp_path: Path) -> None:
    made = model("w = Gather(words, tokens) m = ReduceMean<keepdims = 0>(w, middle) y = MatMul(m, head)")
    made.graph.initializer.append(numpy_helper.from_array(np.array([1]), "middle"))
    made.graph.initializer.append(numpy_helper.from_array(WORDS[:16, :].copy(), "head"))
    made.graph.output[0].type.tensor_type.shape.ClearField("dim")
    file = strip(made)
    draw = np.random.default_rng(1)
    feeds = {"tokens": draw.integers(0, 110, (32, 6))}
    quantizing = Quantizing(
        methods=("dynamic", "weights8"),
        calibration_method="minmax",
        percentile=99.9,
        per_channel=True,
        scales="any",
        equalize=False,
        bias_correction=False,
        tables=8,
    )
    builder = FormBuilder(
        file, feeds, top_answers(file, feeds), quantizing, folder=tmp_path, seen={"tokens": np.arange(100)[None]}
    )
    forms = builder.forms(lambda fraction, text: None)
    assert [form.method for form in forms] == ["dynamic", "weights8"]
    (trimmed,) = builder.notes["trimmed"]
    assert (trimmed["rows"], trimmed["kept"], trimmed["unknown"]) == (400, 110, 0.0)
    assert all(len(form.data) < 0.5 * len(file) for form in forms)
