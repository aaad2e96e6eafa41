"""A first layer that reads bytes: the same bits, fewer operators, and only where quantizing gives back every byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, numpy_helper

from tasks.onnx_models.byte_input import fold_byte_inputs, spell_out_byte_inputs
from tasks.onnx_models.float_biases import float_biases
from tasks.onnx_models.onnx_graph import strip
from tasks.qat.torch_graph import TorchGraph
from tasks.qat.write_back import write_back
from tasks.quantize.agreement import top_answers
from tasks.quantize.prepared_graph import prepare
from tasks.quantize.static_recipe import static_recipe

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (64, 3, 8, 8), dtype=np.uint8)
IMAGES[0, 0, 0, :2] = 0, 255
LAYERS = "h = Conv<pads = [1, 1, 1, 1]>(x, w, b) r = Relu(h) p = GlobalAveragePool(r) q = Flatten(p) y = Gemm(q, v, c)"
HALVED = "f = Cast<to = 1>(image) s = Div(f, d) x = Sub(s, m)"


def model(preprocessing: str = HALVED, *, kind: str = "uint8", **constants: object) -> ModelProto:
    """A convolution and a product behind the preprocessing of an image."""
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
        g ({kind}[N, 3, 8, 8] image) => (float[N, 5] y) {{ {preprocessing} {LAYERS} }}"""
    made = onnx.parser.parse_model(text)
    arrays = {"d": 64.0, "m": 2.0, **constants} | {
        "w": RANDOM.normal(size=(16, 3, 3, 3)) / 5,
        "b": RANDOM.normal(size=16),
        "v": RANDOM.normal(size=(16, 5)),
        "c": RANDOM.normal(size=5),
    }
    for name, value in arrays.items():
        made.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
    return made


FLOATS = model("s = Div(image, d) x = Sub(s, m)", kind="float")


def quantized(made: ModelProto, folder: Path, *, method: str = "minmax", rows: object = IMAGES) -> ModelProto:
    file, feeds = made.SerializeToString(), {"image": np.asarray(rows)}
    build, _ = static_recipe(
        prepare(file, folder), feeds, top_answers(file, feeds), folder, method=method, percentile=99.0,
        per_channel=True,
        reduce_range=True, activations="uint8", correct_biases=False,
    )  # fmt: skip
    found = build(frozenset())
    float_biases(found)
    return found


def operators(made: ModelProto) -> list[str]:
    return [n.op_type for n in onnx.load_from_string(strip(made)).graph.node]


def test_the_first_layer_reads_the_bytes_and_answers_the_same_bits(tmp_path: Path) -> None:
    plain = quantized(model(), tmp_path)
    before = top_answers(plain.SerializeToString(), {"image": IMAGES})
    count = len(operators(plain))
    assert fold_byte_inputs(plain) == 1
    assert not {"Cast", "Div", "Sub"} & set(operators(plain)) and len(operators(plain)) == count - 4
    np.testing.assert_array_equal(top_answers(strip(plain, merge_equal=True), {"image": IMAGES}), before)
    assert fold_byte_inputs(plain) == 0


@pytest.mark.parametrize(
    "preprocessing",
    ["f = Cast<to = 1>(image) x = Div(f, d)", "f = Cast<to = 1>(image) x = Mul(d, f)", "x = Cast<to = 1>(image)"],
)
def test_any_scaling_by_one_number_will_do(preprocessing: str, tmp_path: Path) -> None:
    plain = quantized(model(preprocessing, d=255.0), tmp_path)
    before = top_answers(plain.SerializeToString(), {"image": IMAGES})
    assert fold_byte_inputs(plain) == 1
    np.testing.assert_array_equal(top_answers(strip(plain), {"image": IMAGES}), before)


def test_what_does_not_give_back_every_byte_stays(tmp_path: Path) -> None:
    by_channel = model(d=np.reshape([60.0, 64.0, 70.0], (3, 1, 1)))
    cases = {
        "a scale per channel": quantized(by_channel, tmp_path),
        "clipped by the calibration": quantized(model(), tmp_path, method="percentile"),
        "no 0 and no 255 among the rows": quantized(model(), tmp_path, rows=np.clip(IMAGES, 9, 200)),
        "floats": quantized(FLOATS, tmp_path, rows=IMAGES.astype(np.float32)),
        "an offset that is computed": quantized(
            model("e = Exp(m) " + HALVED.replace("Sub(s, m)", "Sub(s, e)")), tmp_path
        ),
    }
    for why, made in cases.items():
        data = made.SerializeToString()
        assert fold_byte_inputs(made) == 0 and made.SerializeToString() == data, why


def test_training_sees_the_quantizer_again_and_writes_bytes_where_it_kept_it(tmp_path: Path) -> None:
    made = quantized(model(), tmp_path)
    fold_byte_inputs(made)
    folded = onnx.load_from_string(strip(made, merge_equal=True))
    wanted = top_answers(folded.SerializeToString(), {"image": IMAGES})
    spelled = spell_out_byte_inputs(folded)
    np.testing.assert_array_equal(top_answers(spelled.SerializeToString(), {"image": IMAGES}), wanted)
    module = TorchGraph(spelled).eval()
    with torch.no_grad():
        found = module(image=torch.from_numpy(IMAGES)).numpy()
    assert np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()
    written = write_back(module)
    assert fold_byte_inputs(written) == 1
    np.testing.assert_allclose(top_answers(strip(written), {"image": IMAGES}), wanted, atol=1e-5)


def test_models_without_byte_inputs_are_left_alone(tmp_path: Path) -> None:
    made = quantized(FLOATS, tmp_path, rows=IMAGES.astype(np.float32))
    assert spell_out_byte_inputs(made) == made
