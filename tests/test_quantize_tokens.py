"""Static int8 of a network of tokens: its matrix products are int8, and what lies between them is not rounded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cut_networks import SHAPE, TinyNext, TinyViT
from torch import nn

from tasks.export.onnx_export import export_onnx
from tasks.export.raw_inputs import RawInputs
from tasks.quantize.calibration import RowReader
from tasks.quantize.int8_static import quantize_statically
from tasks.quantize.prepared_graph import prepare, quantizable


@pytest.mark.slow  # exports real networks
@pytest.mark.parametrize("network", [TinyViT, TinyNext])
def test_one_convolution_does_not_make_a_transformer_convolutional(network: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    image = torch.rand(8, *SHAPE)
    module = RawInputs(network().eval(), lambda inputs: inputs, ("image",))
    prepared = prepare(export_onnx(module, {"image": image}, output="logits"), tmp_path)
    quantized = quantize_statically(
        prepared,
        RowReader({"image": image.numpy().astype(np.float32)}),
        tmp_path,
        method="minmax",
        percentile=99.9,
        per_channel=True,
        reduce_range=False,
        activations="uint8",
    )
    kinds = [node.op_type for node in quantized.graph.node]
    assert kinds.count("QuantizeLinear") <= 2 * len(
        quantizable(prepared)
    )  # what a layer reads, and what a Conv answers
