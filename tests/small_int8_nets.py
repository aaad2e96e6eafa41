"""Small nets of random weights, quantized as the pipeline quantizes them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import nn

from tasks.onnx_models.graph_as_run import as_run
from tasks.quantize.calibration import RowReader
from tasks.quantize.int8_static import quantize_statically
from tasks.quantize.power_of_two import snap_scales
from tasks.quantize.prepared_graph import prepare

Array = NDArray[Any]
ROWS = np.random.default_rng(3).random((64, 2, 8, 8)).astype(np.float32)


def chain() -> nn.Module:
    """Perceptron without anything but ReLU between."""
    return nn.Sequential(nn.Flatten(), nn.Linear(128, 10), nn.ReLU(), nn.Linear(10, 6), nn.ReLU(), nn.Linear(6, 3))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


def few() -> nn.Module:
    """A convolution that Verilator builds in seconds."""
    return nn.Sequential(
        nn.Conv2d(2, 2, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3)
    )


def means() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)
    )


def float_file(net: nn.Module, name: str = "x", channels: int = 2) -> bytes:
    """Exported with a free batch; one input [batch, channels, 8, 8]."""
    torch.manual_seed(1)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.reset_parameters()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        program = torch.onnx.export(
            net.eval(),
            (torch.zeros(2, channels, 8, 8),),
            dynamo=True,
            input_names=[name],
            output_names=["y"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert program is not None
    file: bytes = program.model_proto.SerializeToString()
    return file


def int8(
    net: nn.Module, folder: Path, *, powers_of_two: bool = True, name: str = "x", rows: Array = ROWS
) -> tuple[ModelProto, ModelProto]:
    """The static int8 form of the net, calibrated on the rows, and the prepared fp32 model that it was made of."""
    prepared = prepare(float_file(net, name, rows.shape[1]), folder)
    quantized = quantize_statically(
        prepared,
        RowReader({name: rows}),
        folder,
        method="minmax",
        percentile=99.9,
        per_channel=True,
        reduce_range=True,
        activations="uint8",
    )
    return snap_scales(quantized, prepared, most=64) if powers_of_two else quantized, prepared


def run_as(model: ModelProto, folder: Path) -> ModelProto:
    """As ONNX Runtime runs it."""
    return as_run(model.SerializeToString(), folder)
