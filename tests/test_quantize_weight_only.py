"""Weight-only int8 and int4, fp16: sizes, nearness, which kernels ONNX Runtime runs, what is counted."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from depthwise_models import Chain, images
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel
from test_quantize import operators_run

from tasks.onnx_models.onnx_cost import onnx_cost
from tasks.onnx_models.onnx_graph import signature, strip
from tasks.quantize.agreement import agree, top_answers
from tasks.quantize.half_precision import to_half, why_it_does_not_load
from tasks.quantize.int8_share import int8_share
from tasks.quantize.prepared_graph import prepare, why_not
from tasks.quantize.weight_only import quantize_weights, round_blocks, round_channels, runs_as_float

SHAPES = {"image": (1, 3, 8, 8)}


@pytest.fixture(scope="module")
def file() -> bytes:
    chain = Chain(3, 8).conv(16, 3, 3).add("Relu").conv(16, 16, 3, group=16).add("Relu").add("Flatten")
    return chain.gemm(50, 1024).add("Relu").gemm(10, 50).file()


@pytest.fixture
def prepared(file: bytes, tmp_path: Path) -> ModelProto:
    return prepare(file, tmp_path)


def tensors_of(file: bytes) -> list[tuple[str, str]]:
    return [(spec.name, spec.datatype) for part in signature(onnx.load_from_string(file)) for spec in part]


@pytest.mark.parametrize(("bits", "size", "error"), [(8, 0.27, 0.02), (4, 0.18, 0.15)])
def test_weights_shrink_and_products_run_in_their_own_kernel(
    file: bytes, prepared: ModelProto, tmp_path: Path, bits: int, size: float, error: float
) -> None:
    quantized = quantize_weights(prepared, bits=bits, folded=0)
    data = strip(quantized, merge_equal=True)
    assert len(data) < size * len(strip(prepared))
    found = agree(top_answers(file, images()), top_answers(data, images()))
    assert 0 < found.error < error and found.agreement is not None and found.agreement > 0.9
    share = int8_share(prepared, quantized, SHAPES)
    assert (share.quantized, share.quantizable, share.share, share.fp32_layers) == (4, 4, 1.0, ())
    assert onnx_cost(onnx.load_from_string(data)) == onnx_cost(prepared)
    ran = operators_run(data, tmp_path)
    # Convolutions are folded to fp32 when the file is loaded; no weight is dequantized at every call.
    assert (ran["MatMulNBits"], ran["Conv"]) == (2, 2)
    assert not {"DequantizeLinear", "Gemm", "FusedGemm", "Cast", "Mul"} & ran.keys()
    assert tensors_of(data) == tensors_of(file)
    assert data == strip(quantize_weights(prepared, bits=bits, folded=0), merge_equal=True)
    assert not runs_as_float(quantized)


def test_small_products_are_small_on_disk_only(file: bytes, prepared: ModelProto, tmp_path: Path) -> None:
    """Folded when the file is loaded: the same operators as in fp32, hence as fast, and the same on every CPU."""
    quantized = quantize_weights(prepared, bits=8)
    data = strip(quantized, merge_equal=True)
    assert len(data) < 0.27 * len(strip(prepared))
    found = agree(top_answers(file, images()), top_answers(data, images()))
    assert 0 < found.error < 0.02 and found.agreement is not None and found.agreement > 0.9
    assert operators_run(data, tmp_path) == operators_run(file, tmp_path)
    assert runs_as_float(quantized)
    share = int8_share(prepared, quantized, SHAPES)
    assert (share.quantized, share.quantizable, share.fp32_layers) == (4, 4, ())
    scales = {i.name: i for i in quantized.graph.initializer if i.name.endswith("_scale")}
    assert max(numpy_helper.to_array(i).size for i in scales.values()) == 50  # one per output, not per input


def products(steps: str) -> ModelProto:
    """Two products of odd sizes, the first with its bias on the left; ``steps``: of a sequence, ``5, `` or none."""
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, {steps}37] image) => (float[N, {steps}7] logits)
    {{ a = MatMul(image, w) b = Add(bias, a) c = Relu(b) logits = MatMul(c, v) }}"""
    model = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    weights = {"w": random.normal(size=(37, 19)), "bias": random.normal(size=19), "v": random.normal(size=(19, 7))}
    model.graph.initializer.extend(numpy_helper.from_array(w.astype(np.float32), n) for n, w in weights.items())
    return model


def test_products_with_odd_sizes_other_forms_and_no_bias(tmp_path: Path) -> None:
    model, random = products(""), np.random.default_rng(1)
    rows = {"image": random.normal(size=(32, 37)).astype(np.float32)}
    wanted = top_answers(model.SerializeToString(), rows)
    for bits, error in ((8, 0.02), (4, 0.15)):
        quantized = quantize_weights(prepare(model.SerializeToString(), tmp_path), bits=bits, folded=0)
        data = strip(quantized, merge_equal=True)
        assert agree(wanted, top_answers(data, rows)).error < error
        assert operators_run(data, tmp_path)["MatMulNBits"] == 2

    scaled = Chain(3, 2).add("Flatten")
    scaled.add("Gemm", random.normal(size=(12, 6)), random.normal(size=6), alpha=0.5)
    quantized = quantize_weights(prepare(scaled.file(), tmp_path), bits=4)
    assert [n.op_type for n in quantized.graph.node] == ["Flatten", "Cast", "Mul", "Gemm"]  # int8: alpha is kept
    found = agree(
        top_answers(scaled.file(), images(64, 3, 2)), top_answers(quantized.SerializeToString(), images(64, 3, 2))
    )
    assert found.error < 0.02


def test_int8_products_of_sequences_run_as_floats_and_int4_ones_do_not(tmp_path: Path) -> None:
    """A sequence has a row for each step, where the kernel of int8 blocks is slower than fp32."""
    model = products("5, ")
    rows = {"image": np.random.default_rng(2).normal(size=(32, 5, 37)).astype(np.float32)}
    wanted = top_answers(model.SerializeToString(), rows)
    for bits, error, kernels in ((8, 0.02, 0), (4, 0.15, 2)):
        quantized = quantize_weights(prepare(model.SerializeToString(), tmp_path), bits=bits, folded=0)
        data = strip(quantized, merge_equal=True)
        assert agree(wanted, top_answers(data, rows)).error < error
        assert operators_run(data, tmp_path).get("MatMulNBits", 0) == kernels
        assert runs_as_float(quantized) == (bits == 8)


def test_rounding_is_exact_where_it_can_be_and_blocks_have_their_own_scales() -> None:
    weight = np.random.default_rng(0).normal(size=(70, 3)).astype(np.float32)
    weight[:32] *= 1000
    numbers, scales = round_blocks(weight)
    assert numbers.shape == (70, 3) and scales.shape == (3, 3)
    assert numbers.min() >= -8 and numbers.max() <= 7
    back = numbers * np.repeat(scales, 32, axis=0)[:70]
    for part in (slice(0, 32), slice(32, 70)):
        assert np.square(back[part] - weight[part]).sum() < 0.01 * np.square(weight[part]).sum()
    numbers, scales = round_channels(np.array([[[2.0]], [[-127.0]], [[0.0]]], np.float32), 0)
    assert (numbers * scales).reshape(-1).tolist() == pytest.approx([2, -127, 0])


def test_fp16_halves_the_file_and_keeps_inputs_and_outputs(file: bytes, prepared: ModelProto, tmp_path: Path) -> None:
    path = sys.path[:]
    half = to_half(prepared)
    assert sys.path == path
    data = strip(half, merge_equal=True)
    assert why_it_does_not_load(data) == ""
    assert len(data) < 0.52 * len(strip(prepared))
    assert tensors_of(data) == tensors_of(file)
    assert 0 < agree(top_answers(file, images()), top_answers(data, images())).error < 0.005
    share = int8_share(prepared, half, SHAPES)
    assert (share.quantized, share.share) == (4, 1.0)
    assert onnx_cost(onnx.load_from_string(data), SHAPES) == onnx_cost(prepared, SHAPES)
    broken = onnx.load_from_string(data)
    broken.graph.node[0].op_type = "Sigmoid"  # the cast is gone: fp32 meets fp16
    del broken.graph.node[0].attribute[:]
    assert why_it_does_not_load(broken.SerializeToString()).startswith("ONNX Runtime cannot load the model in fp16: ")


def test_a_file_with_fp16_constants_is_quantized_as_the_fp32_file_it_runs_as(
    prepared: ModelProto, tmp_path: Path
) -> None:
    data = strip(to_half(prepared), merge_equal=True)
    widened = prepare(data, tmp_path)
    assert {i.data_type for i in widened.graph.initializer} == {TensorProto.FLOAT}
    assert agree(top_answers(data, images()), top_answers(widened.SerializeToString(), images())).error < 0.005
    packed = strip(quantize_weights(widened, bits=8), merge_equal=True)
    assert int8_share(widened, quantize_weights(widened, bits=8), SHAPES).share == 1.0
    assert len(packed) < 0.6 * len(data)
    assert 0 < agree(top_answers(data, images()), top_answers(packed, images())).error < 0.02


def test_what_each_method_cannot_do(prepared: ModelProto, tmp_path: Path) -> None:
    convolutions = prepare(Chain(3, 8).conv(8, 3, 3).model(rank=4).SerializeToString(), tmp_path)
    assert why_not(convolutions, "weights8") == ""
    assert why_not(convolutions, "weights4").endswith("int4 is for those only: use weights8")
    assert "has no bfloat16 Conv, Gemm or MatMul on CPUs" in why_not(prepared, "bf16")
    # It goes red when ONNX Runtime learns bfloat16: then write that form.
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info(name, TensorProto.BFLOAT16, [2, 2]) for name in ("x", "w")],
        [helper.make_tensor_value_info("y", TensorProto.BFLOAT16, [2, 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with pytest.raises(NoKernel, match="MatMul"):
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
