"""ONNX operators in torch, each against ONNX Runtime; and whole graphs of other kinds than the CNN's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from model_registry.cpu_class import cpu_class, sums_saturate
from tasks.export.onnx_export import export_onnx
from tasks.export.raw_inputs import RawInputs
from tasks.onnx_models.onnx_graph import strip
from tasks.qat.int8_parity import check_int8_parity, run_onnx
from tasks.qat.torch_graph import TorchGraph
from tasks.qat.torch_operators import operation
from tasks.qat.write_back import write_back
from tasks.quantize.calibration import RowReader
from tasks.quantize.int8_static import quantize_statically
from tasks.quantize.prepared_graph import prepare
from tasks.running.errors import QatUnsupported

RANDOM = np.random.default_rng(0)
IMAGE, FLAT = (RANDOM.normal(size=shape).astype(np.float32) for shape in ((2, 4, 7, 9), (3, 6)))
KERNEL, MATRIX = (RANDOM.normal(size=shape).astype(np.float32) for shape in ((8, 2, 3, 3), (6, 5)))
UP, TWICE = RANDOM.normal(size=(4, 3, 3, 2)).astype(np.float32), np.array([1, 1, 2, 2], np.float32)
VECTOR = RANDOM.uniform(0.5, 1.5, 4).astype(np.float32)


def whole(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def scalar(value: float) -> np.ndarray:
    return np.array(value, np.float32)


CASES: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("Conv", [IMAGE, KERNEL, np.arange(8, dtype=np.float32)], {"group": 2, "pads": [1, 0, 2, 1], "strides": [2, 1]}),
    ("Conv", [IMAGE, KERNEL], {"group": 2, "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", [IMAGE, KERNEL], {"group": 2, "auto_pad": "SAME_LOWER", "dilations": [1, 1]}),
    ("Conv", [IMAGE, KERNEL], {"group": 2, "auto_pad": "VALID", "dilations": [2, 1]}),
    (
        "ConvTranspose",
        [IMAGE, UP, np.arange(6, dtype=np.float32)],
        {"group": 2, "strides": [2, 2], "pads": [1, 0, 1, 0]},
    ),
    ("ConvTranspose", [IMAGE, UP], {"group": 2, "strides": [3, 2], "output_padding": [1, 0]}),
    ("Resize", [IMAGE, None, TWICE], {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"}),
    ("Resize", [IMAGE, None, None, whole(2, 4, 14, 27)], {"mode": "linear"}),
    ("Resize", [IMAGE, None, TWICE], {"mode": "linear", "coordinate_transformation_mode": "align_corners"}),
    (
        "Resize",
        [IMAGE, None, TWICE],
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    ),
    ("Gemm", [FLAT, MATRIX, MATRIX[0]], {}),
    ("Gemm", [FLAT, MATRIX.T.copy()], {"transB": 1}),
    ("MatMul", [FLAT, MATRIX], {}),
    ("MaxPool", [IMAGE], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 1, 1, 1]}),
    ("MaxPool", [IMAGE], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    ("AveragePool", [IMAGE], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ("AveragePool", [IMAGE], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ("GlobalAveragePool", [IMAGE], {}),
    ("ReduceMean", [IMAGE, whole(2, 3)], {"keepdims": 0}),
    ("ReduceMean", [IMAGE], {}),
    ("Relu", [IMAGE], {}),
    ("Clip", [IMAGE, scalar(-0.5), scalar(0.6)], {}),
    ("Clip", [IMAGE, None, scalar(0.6)], {}),
    ("LeakyRelu", [IMAGE], {"alpha": 0.2}),
    ("Elu", [IMAGE], {}),
    ("Sigmoid", [IMAGE], {}),
    ("HardSigmoid", [IMAGE], {"alpha": 0.3}),
    ("HardSwish", [IMAGE], {}),
    ("Tanh", [IMAGE], {}),
    ("Erf", [IMAGE], {}),
    ("Gelu", [IMAGE], {"approximate": "tanh"}),
    ("Softmax", [IMAGE], {"axis": 1}),
    ("Pow", [np.abs(IMAGE), scalar(0.5)], {}),
    ("Sub", [IMAGE, VECTOR.reshape(4, 1, 1)], {}),
    ("Div", [IMAGE, VECTOR.reshape(4, 1, 1)], {}),
    ("Div", [whole(-7, 7), whole(2, 2)], {}),
    ("BatchNormalization", [IMAGE, VECTOR, VECTOR, VECTOR, VECTOR], {}),
    ("LayerNormalization", [FLAT, MATRIX[:, 0].copy(), MATRIX[:, 1].copy()], {"epsilon": 1e-3}),
    ("Flatten", [IMAGE], {"axis": 2}),
    ("Flatten", [IMAGE], {"axis": 0}),
    ("Reshape", [IMAGE, whole(0, -1, 9)], {}),
    ("Transpose", [IMAGE], {"perm": [0, 2, 3, 1]}),
    ("Transpose", [IMAGE], {}),
    ("Concat", [IMAGE, IMAGE], {"axis": -1}),
    ("Unsqueeze", [FLAT, whole(0, -1)], {}),
    ("Squeeze", [FLAT[:1], whole(0)], {}),
    ("Gather", [IMAGE, whole(1, -1)], {"axis": 2}),
    ("Gather", [IMAGE, np.array(2)], {"axis": 1}),
    ("Slice", [IMAGE, whole(1, -4), whole(3, 1 << 62), whole(1, 3), whole(1, 2)], {}),
    ("Shape", [IMAGE], {"start": 1}),
    ("Pad", [IMAGE, whole(0, 0, 1, 2, 0, 0, 0, 1), scalar(0.5)], {}),
    ("Pad", [IMAGE, whole(0, 0, 1, 2, 0, 0, 0, 1)], {"mode": "reflect"}),
    ("Pad", [IMAGE, whole(0, 0, 1, 2, 0, 0, 0, 1)], {"mode": "edge"}),
    ("Cast", [IMAGE], {"to": TensorProto.INT64}),
    ("Where", [IMAGE > 0, IMAGE, scalar(1.5)], {}),
    ("Identity", [IMAGE], {}),
]


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes"), CASES, ids=lambda value: value if type(value) is str else ""
)
def test_the_operator_computes_what_onnx_runtime_does(
    operator: str, inputs: list[np.ndarray | None], attributes: dict[str, Any]
) -> None:
    names = [f"i{k}" if value is not None else "" for k, value in enumerate(inputs)]
    given = {name: value for name, value in zip(names, inputs, strict=True) if value is not None}
    node = helper.make_node(operator, names, ["y"], **attributes)
    kinds = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in given.items()
    ]
    integral = operator == "Shape" or attributes.get("to") or (inputs[0] is not None and inputs[0].dtype == np.int64)
    made = helper.make_tensor_value_info("y", TensorProto.INT64 if integral else TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "one", kinds, [made])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    wanted = onnxruntime.InferenceSession(model.SerializeToString()).run(None, given)[0]
    found = operation(node)(*(torch.from_numpy(np.array(v)) if v is not None else None for v in inputs)).numpy()
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("operator", "attributes", "text"),
    [
        ("Gemm", {"alpha": 0.5}, "Gemm with alpha, beta or transA"),
        ("Pad", {"mode": "wrap"}, "Pad with mode wrap"),
        ("Cast", {"to": TensorProto.FLOAT16}, "Cast to float16"),
        ("Resize", {"mode": "cubic"}, "Resize with mode cubic and coordinates half_pixel"),
        ("ConvTranspose", {"auto_pad": "SAME_UPPER"}, "ConvTranspose with auto_pad or output_shape"),
        ("LSTM", {}, "operator LSTM"),
        ("Dropout", {"domain": "ai.example"}, "operator ai.example.Dropout"),
    ],
)
def test_what_is_not_supported_is_said(operator: str, attributes: dict[str, Any], text: str) -> None:
    node = helper.make_node(operator, ["a", "b"], ["y"], name="here", **attributes)
    with pytest.raises(QatUnsupported, match=rf"node 'here' \({operator}\): {text} is not supported"):
        operation(node)


class Encoder(nn.Module):
    """Attention over 8 tokens: products of activations, LayerNorm and GELU stay in float between int8 products."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.query, self.key, self.value, self.up = (nn.Linear(16, 16) for _ in range(4))
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(tokens)
        scores = (self.query(x) @ self.key(x).transpose(1, 2) / 4).softmax(-1)
        x = tokens + scores @ self.value(x)
        return self.head((x + functional.gelu(self.up(x))).mean(1))  # type: ignore[no-any-return]


def test_an_encoder_is_imported_trained_and_written(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rows = torch.randn(64, 8, 16)
    fp32 = export_onnx(RawInputs(Encoder(), lambda inputs: inputs, ("tokens",)), {"tokens": rows}, output="scores")
    quantized = quantize_statically(
        prepare(fp32, tmp_path),
        RowReader({"tokens": rows.numpy()}),
        tmp_path,
        method="minmax",
        percentile=99.9,
        per_channel=True,
        reduce_range=sums_saturate(cpu_class()),
        activations="uint8",
    )
    file = strip(quantized, merge_equal=True)
    module = TorchGraph(onnx.load_from_string(file))
    assert len(module.graph.weights) == 5
    assert strip(write_back(module), merge_equal=True) == file
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        torch.autograd.backward(module.train()(tokens=rows).square().mean())
        optimizer.step()
    assert [name for name, value in module.named_parameters() if torch.equal(value, before[name])] == []
    with torch.no_grad():
        trained = module.eval()(tokens=rows).numpy()
    written = run_onnx(strip(write_back(module), merge_equal=True), {"tokens": rows.numpy()})
    assert check_int8_parity(trained, written, scale=None).mean < 0.05


def _quantized_sum() -> ModelProto:
    """x + 3 in int8, then a float product with a weight that is read once."""
    text = """<ir_version: 10, opset_import: ["" : 20]>
    g (float[N, 2] x) => (float[N, 2] y)
    <float s = {0.1}, uint8 z = {128}, uint8 c = {158}, int8[2, 2] w = {1, 2, 3, 4}, float[2] f = {0.1, 0.2},
     float[2, 2] m = {1, 2, 3, 4}>
    {
      q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)
      k = DequantizeLinear(c, s, z)
      a = Add(d, k)
      r = QuantizeLinear(a, s, z)  e = DequantizeLinear(r, s, z)
      v = DequantizeLinear<axis = 1>(w, f)
      p = MatMul(e, v)
      y = MatMul(p, m)
    }"""
    return onnx.parser.parse_model(text)


def test_constants_stay_and_float_layers_learn() -> None:
    model = _quantized_sum()
    module = TorchGraph(model)
    x = torch.randn(9, 2)
    with torch.no_grad():
        np.testing.assert_allclose(module.eval()(x=x), run_onnx(model.SerializeToString(), {"x": x.numpy()}), rtol=1e-5)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    torch.autograd.backward(module.train()(x=x).square().mean())
    optimizer.step()
    written = write_back(module)
    constants = {i.name: numpy_helper.to_array(i) for i in written.graph.initializer}
    product = written.graph.node[-1]
    assert np.abs(constants[product.input[1]] - [[1, 2], [3, 4]]).min() > 0.005
    assert constants["c"] == 158 and constants["s"] == np.float32(0.1)
    with torch.no_grad():
        np.testing.assert_allclose(
            module.eval()(x=x), run_onnx(written.SerializeToString(), {"x": x.numpy()}), rtol=1e-4, atol=1e-5
        )


def test_quantizers_of_another_kind_are_refused() -> None:
    model = _quantized_sum()
    model.graph.node[1].input[1] = "s2"
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.2, np.float32), "s2"))
    with pytest.raises(QatUnsupported, match=r"node 'd' \(DequantizeLinear\): its scale or zero point is not that of"):
        TorchGraph(model)
    model = _quantized_sum()
    model.graph.node[6].attribute[0].i = 0
    with pytest.raises(QatUnsupported, match=r"node 'p' \(MatMul\): its weight has a scale per input channel"):
        TorchGraph(model)
