"""Scaling moved into weights: where it may be, and that the answers stay."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, numpy_helper

from tasks.export.folded_scaling import fold_scaling

RNG = np.random.default_rng(0)


def model(body: str, **tensors: np.ndarray) -> ModelProto:
    text = f'<ir_version: 8, opset_import: ["" : 20]> g (float[N, 1, 6, 6] x) => (float[N, a, b, c] y) {{ {body} }}'
    parsed: ModelProto = onnx.parser.parse_model(text)
    parsed.graph.initializer.extend(numpy_helper.from_array(np.asarray(v, np.float32), n) for n, v in tensors.items())
    return parsed


def run(found: ModelProto) -> np.ndarray:
    rows = np.random.default_rng(1).normal(size=(3, 1, 6, 6)).astype(np.float32)
    session = onnxruntime.InferenceSession(found.SerializeToString(), providers=["CPUExecutionProvider"])
    answer: np.ndarray = session.run(None, {"x": rows})[0]
    return answer


@pytest.mark.parametrize("scaling", ["s = Div(x, c)", "s = Mul(x, c)", "s = Mul(c, x)"])
def test_a_division_before_a_convolution_goes_into_its_weights(scaling: str) -> None:
    made = model(f"{scaling} y = Conv<pads = [1, 1, 1, 1]>(s, w)", w=RNG.normal(size=(4, 1, 3, 3)), c=np.array(16.0))
    before = run(made)
    fold_scaling(made)
    assert [n.op_type for n in made.graph.node] == ["Conv"]
    np.testing.assert_allclose(run(made), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "body",
    [
        "s = Div(c, x) y = Conv(s, w)",
        "s = Div(x, v) y = Conv(s, w)",
        "s = Div(x, c) t = Conv(s, w) m = ReduceMean(s) y = Add(t, m)",
        "s = Div(x, c) t = Conv(s, w) u = Conv(x, w) y = Add(t, u)",
        "s = Div(x, c) y = Relu(s)",
        "s = Div(x, z) y = Conv(s, w)",
    ],
)
def test_what_others_read_or_is_no_plain_scaling_stays(body: str) -> None:
    tensors = {"w": RNG.normal(size=(4, 1, 3, 3)), "c": np.array(16.0), "v": np.full((6,), 2.0), "z": np.array(0.0)}
    made = model(body, **tensors)
    fold_scaling(made)
    assert len(made.graph.node) == body.count("=")
