"""Cross-layer equalization and bias correction: the function is preserved, and int8 answers come nearer to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from depthwise_models import Chain, images, mobile
from onnx import ModelProto, TensorProto, numpy_helper

from tasks.quantize.agreement import Agreement, agree, top_answers
from tasks.quantize.bias_correction import add_biases, bias_shifts, shift_biases
from tasks.quantize.calibration import RowReader
from tasks.quantize.equalization import Pair, equalize
from tasks.quantize.int8_static import quantize_statically
from tasks.quantize.layer_outputs import channel_means
from tasks.quantize.prepared_graph import prepare, quantizable


def statically(prepared: ModelProto, folder: Path, **kwargs: Any) -> ModelProto:
    options = {
        "method": "minmax",
        "percentile": 99.9,
        "per_channel": True,
        "reduce_range": False,
        "activations": "uint8",
    }
    return quantize_statically(prepared, RowReader(images()), folder, **{**options, **kwargs})


def compare(left: ModelProto | bytes, right: ModelProto | bytes, **kwargs: Any) -> Agreement:
    """On rows that calibration has not seen."""
    files = [m if isinstance(m, bytes) else m.SerializeToString() for m in (left, right)]
    rows = images(256, seed=5, **kwargs)
    return agree(top_answers(files[0], rows), top_answers(files[1], rows))


@pytest.mark.parametrize("per_channel", [False, True])
def test_badly_scaled_depthwise_channels_become_good_int8(tmp_path: Path, per_channel: bool) -> None:
    file = mobile(uneven=True).file()
    prepared = prepare(file, tmp_path)
    equalized = equalize(prepared)
    layers = ["Conv_0", "Conv_2", "Conv_4", "Conv_6", "Conv_8", "Gemm_12"]
    assert [(p.first, p.second, p.repeat) for p in equalized.pairs] == list(
        zip(layers[:-1], layers[1:], [1] * 5, strict=True)
    )
    assert equalized.skipped == ()
    rows = images()
    np.testing.assert_allclose(
        top_answers(equalized.model.SerializeToString(), rows), top_answers(file, rows), atol=1e-4, rtol=1e-4
    )
    before, after = (
        compare(file, statically(model, tmp_path, per_channel=per_channel)) for model in (prepared, equalized.model)
    )
    assert before.agreement is not None and before.agreement < 0.7 and before.error > 0.3
    assert after.agreement is not None and after.agreement > 0.95 and after.error < 0.02


def test_the_channels_of_a_pair_have_equal_ranges_afterwards(tmp_path: Path) -> None:
    model = equalize(prepare(mobile(uneven=True).file(), tmp_path)).model
    tensors = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    layers = quantizable(model)
    first, second = (tensors[node.input[1]] for node in layers[:2])  # [16, 3, 3, 3] and depthwise [16, 1, 3, 3]
    np.testing.assert_allclose(np.abs(first).max(axis=(1, 2, 3)), np.abs(second).max(axis=(1, 2, 3)), rtol=0.02)


def test_relu6_is_left_alone_and_a_clip_without_an_end_is_a_relu(tmp_path: Path) -> None:
    equalized = equalize(prepare(mobile(uneven=False, activation="Clip").file(), tmp_path))
    assert [p.second for p in equalized.pairs] == ["Gemm_12"] or equalized.pairs == ()
    assert equalized.skipped[0] == "Conv_0: a Clip with a bound lies between"
    endless = Chain(3, 8).conv(8, 3, 3).add("Clip", np.float32(0)).conv(4, 8, 3)
    assert len(equalize(prepare(endless.model(rank=4).SerializeToString(), tmp_path)).pairs) == 1


def test_grouped_convolutions_and_flattened_maps_keep_their_function(tmp_path: Path) -> None:
    chain = Chain(4, 4).conv(8, 4, 3).add("LeakyRelu", alpha=0.1).conv(12, 8, 3, group=2)
    chain.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2]).add("Flatten").gemm(6, 48).add("Relu").gemm(5, 6)
    chain.weights["w0"] *= np.geomspace(1e-2, 1e2, 8)[:, None, None, None].astype(np.float32)
    file = chain.file()
    equalized = equalize(prepare(file, tmp_path))
    assert equalized.pairs == (
        Pair("Conv_0", "Conv_2", 1), Pair("Conv_2", "Gemm_5", 4), Pair("Gemm_5", "Gemm_7", 1),
    )  # fmt: skip
    rows = images(32, 4, 4)
    wanted = top_answers(file, rows)
    assert agree(wanted, top_answers(equalized.model.SerializeToString(), rows)).error < 1e-5


def test_a_tensor_with_two_readers_a_shared_weight_and_a_dead_channel(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 20]>
    g (float[N, 3, 8, 8] image) => (float[N, 3, 8, 8] logits)
    { a = Conv<pads = [1, 1, 1, 1]>(image, w) b = Conv<pads = [1, 1, 1, 1]>(a, w) c = Conv(b, v) logits = Add(a, c) }"""
    model = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    weights = {"w": random.normal(size=(3, 3, 3, 3)), "v": random.normal(size=(3, 3, 1, 1))}
    model.graph.initializer.extend(numpy_helper.from_array(w.astype(np.float32), n) for n, w in weights.items())
    found = equalize(prepare(model.SerializeToString(), tmp_path))
    assert found.pairs == () and found.skipped == ("Conv_1 -> Conv_2: a weight is shared", "Conv_2: Add lies between")

    chain = Chain(3, 8).conv(4, 3, 3).add("Relu").conv(4, 4, 3)
    chain.weights["w0"][1] = 0
    chain.weights["w2"][:, 2] = 0
    file = chain.model(rank=4).SerializeToString()
    equalized = equalize(prepare(file, tmp_path))
    assert len(equalized.pairs) == 1 and compare(file, equalized.model).error < 1e-5


def test_bias_correction_brings_the_mean_of_each_layer_back(tmp_path: Path) -> None:
    file = mobile(uneven=False).file()
    prepared = add_biases(prepare(file, tmp_path))
    quantized = statically(prepared, tmp_path, per_channel=False)
    correction = bias_shifts(prepared, quantized, images())
    assert len(correction.shifts) == 6 and correction.skipped == ()
    corrected = shift_biases(quantized, correction.shifts)
    assert compare(file, corrected).error < 0.6 * compare(file, quantized).error
    layers = quantizable(prepared)
    wanted, before, after = (channel_means(m, layers, images()) for m in (prepared, quantized, corrected))
    for layer in layers:
        shift = [np.abs(found[layer.name][0] - wanted[layer.name][0]).max() for found in (before, after)]
        assert shift[1] < 0.5 * shift[0]
    kinds = {i.data_type for i in corrected.graph.initializer}
    assert TensorProto.INT32 in kinds
    assert quantized.SerializeToString() == shift_biases(quantized, {}).SerializeToString()


def test_layers_without_a_bias_get_one_and_absurd_shifts_are_left_out(tmp_path: Path) -> None:
    chain = Chain(3, 8).conv(8, 3, 3, bias=False).add("Relu").conv(8, 8, 3, bias=False).add("Relu")
    chain.add("GlobalAveragePool").add("Flatten").gemm(10, 8)
    file = chain.file()
    prepared = add_biases(prepare(file, tmp_path))
    assert [len(node.input) for node in quantizable(prepared)] == [3, 3, 3]
    assert compare(file, prepared).error < 1e-6
    quantized = statically(prepared, tmp_path)
    assert len(bias_shifts(prepared, quantized, images()).shifts) == 3

    broken = add_biases(prepare(mobile(uneven=True).file(), tmp_path))
    correction = bias_shifts(broken, statically(broken, tmp_path), images())
    assert "Conv_2" not in correction.shifts and len(correction.shifts) == 5
    assert [reason.split(" against")[0] for reason in correction.skipped] == ["Conv_2: a shift of 11.5"]
