"""Decoders whose products are asked smoother rows: the same function, and less lost in int8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from decoder_folders import VOCABULARY, decoder_folder
from onnx import ModelProto, numpy_helper

from tasks.export.decoder_onnx import decoder_form, write_decoder
from tasks.quantize.answer_rounding import inverse_root, round_rows_by_answers
from tasks.quantize.decoder_forms import decoder_scores
from tasks.quantize.decoder_weights import decoder_products
from tasks.quantize.int8_dynamic import quantize_dynamically
from tasks.quantize.smoothed_decoder import channel_magnitudes, smoothed
from tasks.workloads.causal_decoder import CausalDecoder
from tasks.workloads.decoder_folder import read_decoder_folder

ROWS = np.random.default_rng(1).integers(0, VOCABULARY, (4, 24))


def decoder(folder: Path, kind: str) -> CausalDecoder:
    found = read_decoder_folder(decoder_folder(folder, kind))
    return found.into(CausalDecoder(found.shape)).eval()


def largest(model: ModelProto) -> dict[str, np.ndarray]:
    return {i.name: np.abs(numpy_helper.to_array(i)) for i in model.graph.initializer}


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma", "gpt2"])
def test_a_smoothed_decoder_is_the_same_function(tmp_path: Path, kind: str) -> None:
    model = decoder(tmp_path, kind)
    form, plain = decoder_form(model), onnx.load_from_string(write_decoder(model))
    found, divisors = smoothed(plain, channel_magnitudes(plain, form, ROWS))
    before, after = (decoder_scores(each.SerializeToString(), form, ROWS) for each in (plain, found))
    np.testing.assert_allclose(before, after, atol=1e-4)
    parts = {name.removesuffix("_weight").rpartition("_")[2] for name in divisors}
    asked = {"query", "key", "value"} if kind == "qwen3" else {"qkv"}
    assert parts == asked | {"up"} | (set() if kind == "gpt2" else {"down"})
    assert all(np.abs(np.log(divisor)).max() > 0.05 for divisor in divisors.values())
    assert len(divisors) == len(parts) * form.layers


def test_inputs_and_weights_have_channels_of_one_size_then(tmp_path: Path) -> None:
    model = decoder(tmp_path, "llama")
    form, plain = decoder_form(model), onnx.load_from_string(write_decoder(model))
    found, divisors = smoothed(plain, channel_magnitudes(plain, form, ROWS))
    asked, weights = channel_magnitudes(found, form, ROWS), largest(found)
    for name in divisors:
        np.testing.assert_allclose(asked[name], weights[name].max(axis=1), rtol=0.05, atol=1e-4)


def test_an_outlier_costs_the_other_channels_nothing(tmp_path: Path) -> None:
    """A channel of a norm is a hundred times as large as the others, and what reads it makes it small again."""
    model = decoder(tmp_path, "llama")
    with torch.no_grad():
        for layer in model.layers.values():
            layer.get_submodule("norm1").weight[3] *= 100.0  # type: ignore[index, operator]
            for name in ("query", "key", "value"):
                layer.get_submodule(f"attention.{name}").weight[:, 3] /= 100.0  # type: ignore[index, operator]
    form, plain = decoder_form(model), onnx.load_from_string(write_decoder(model))
    wanted = decoder_scores(plain.SerializeToString(), form, ROWS)

    def error(of: ModelProto) -> float:
        small = quantize_dynamically(of, per_channel=True, reduce_range=True)
        return float(np.abs(decoder_scores(small.SerializeToString(), form, ROWS) - wanted).mean())

    assert error(smoothed(plain, channel_magnitudes(plain, form, ROWS))[0]) < 0.3 * error(plain)
    assert decoder_products(plain).keys() == channel_magnitudes(plain, form, ROWS).keys()


def test_rows_with_one_scale_are_rounded_by_what_a_layer_answers() -> None:
    """Inputs that vary together: the error of one weight is made up for by others, those far behind it too."""
    draw = np.random.default_rng(0)
    inputs = draw.standard_normal((2000, 12)) @ draw.standard_normal((12, 150))
    inputs += 0.1 * draw.standard_normal(inputs.shape)
    matrix = draw.standard_normal((24, 150)).astype(np.float32)
    matrix[5] = 0
    numbers, scales = round_rows_by_answers(matrix, inverse_root(inputs.T @ inputs), 15)
    assert np.abs(numbers).max() == 15 and scales.shape == (24,) and not numbers[5].any()
    nearest = np.rint(matrix / scales[:, None])

    def error(of: np.ndarray) -> float:
        return float(np.square(inputs @ (matrix - of * scales[:, None]).T).mean())

    assert error(numbers) < 0.5 * error(nearest)
