"""Weights of a decoder on the grid of 4 bits that its file has: taken from the file, trained, and written back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, NodeProto, numpy_helper
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tasks.onnx_models.block_rows import pack_rows4, unpack_rows
from tasks.qat.lsq import QuantizerScale, lsq
from tasks.running.errors import QatUnsupported
from tasks.workloads.causal_decoder import CausalDecoder

_LOW, _HIGH = -8.0, 7.0
_SCALE_PACE = 0.1
"""How much slower the logarithm of a scale learns than a weight, counted in steps of its grid: a whole block moves with
it."""


class LowBits(nn.Module):
    """Rounds rows [N, K] to integers -8 to 7 times a scale for each block of a row.

    Esser et al. 2020, "Learned Step Size Quantization" (arXiv:1902.08153). The weight is counted in steps of the grid
    that it began with, so that an optimizer's step means the same in every layer.

    Args:
        scales: [N, K / block], of any sign but not 0.
    """

    def __init__(self, scales: Tensor) -> None:
        super().__init__()
        self.scale = QuantizerScale(scales, _SCALE_PACE)
        self.shape = scales.shape

    def forward(self, steps: Tensor) -> Tensor:
        """The rounded weight [N, K]."""
        blocks = self._blocks(steps)
        rounded: Tensor = lsq(blocks, self._scale(), _LOW, _HIGH, values=blocks.shape[2])
        return rounded.flatten(1)

    def integers(self, steps: Tensor) -> Tensor:
        """The integers [N, K] of the rounded weight, int8."""
        return (self._blocks(steps) / self._scale()).clamp(_LOW, _HIGH).round().to(torch.int8).flatten(1)

    def scales(self) -> Tensor:
        """[N, K / block]."""
        return self._scale().squeeze(2)

    def _scale(self) -> Tensor:
        scale: Tensor = self.scale()
        return scale.reshape(*self.shape, 1)

    def _blocks(self, steps: Tensor) -> Tensor:
        split: Tensor = steps.unflatten(1, (self.shape[1], -1))  # type: ignore[no-untyped-call]
        return split * self.scale.start.reshape(*self.shape, 1)


@dataclass(frozen=True)
class _FileWeight:
    """A product's or table's weight in the file: its name, and the layers whose rows it joins; bits 32: floats."""

    name: str
    bits: int
    layers: tuple[nn.Module, ...]


def take_rounded(model: CausalDecoder, file: ModelProto) -> int:
    """Give the decoder the weights of its quantized file, in place; the number of weights that can be trained.

    Those of 4 bits can, and their scales: they begin in the cells that the file has them in. All else stays as it is,
    since 8 bits cost next to nothing.

    Args:
        model: the decoder, of floats, that the file was made of.
        file: with MatMulNBits in place of products, as quantization writes it.

    Raises:
        QatUnsupported: the file is of another model, or nothing in it has 4 bits.
    """
    model.requires_grad_(False)
    values = {i.name: i for i in file.graph.initializer}
    trained = 0
    for weight in _weights(model, file):
        if weight.bits == 32:
            continue
        integers = unpack_rows(numpy_helper.to_array(values[weight.name]), weight.bits)
        scales = numpy_helper.to_array(values[f"{weight.name}_scales"])
        start = 0
        for layer in weight.layers:
            rows = slice(start, start + len(_weight_of(layer)))
            start = rows.stop
            _take(layer, torch.tensor(integers[rows], dtype=torch.float32), torch.tensor(scales[rows]), weight.bits)
            trained += integers[rows].size if weight.bits == 4 else 0
    if not trained:
        raise QatUnsupported(
            "no product of the decoder's file has weights of 4 bits; train what weights4 or mixed made"
        )
    return trained


def put_back(model: CausalDecoder, file: ModelProto) -> ModelProto:
    """The file with the integers and scales that were trained; where nothing was trained it is the same, bit for bit.

    Args:
        model, file: as :func:`take_rounded` had them.
    """
    values = dict[str, np.ndarray]()
    with torch.no_grad():
        for weight in _weights(model, file):
            if weight.bits != 4:
                continue
            parts = [_grid_of(layer) for layer in weight.layers]
            integers = torch.cat([grid.integers(steps) for grid, steps in parts]).cpu().numpy()
            scales = torch.cat([grid.scales() for grid, _ in parts]).cpu().numpy()
            values[weight.name], values[f"{weight.name}_scales"] = pack_rows4(integers, scales)
    made = ModelProto()
    made.CopyFrom(file)
    for tensor in made.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
    return made


def _weights(model: CausalDecoder, file: ModelProto) -> Iterator[_FileWeight]:
    """The file's weights in its order, which is the model's; a table that the head shares once."""
    dims = {i.name: list(i.dims) for i in file.graph.initializer}
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    left = iter([model.words, *linears])
    for node in file.graph.node:
        found = _weight_in(node, dims)
        if found is None or (node.output[0] == "logits" and model.head is None):
            continue
        name, bits, count, length = found
        layers, rows = list[nn.Module](), 0
        while rows < count:
            layer = next(left, None)
            if layer is None or _weight_of(layer).shape[1] != length:
                break
            layers.append(layer)
            rows += len(_weight_of(layer))
        if rows != count:
            raise QatUnsupported(
                f"weight {name!r} of the decoder's file is [{count}, {length}], which no layers of the model have "
                "together at its place; train a file that was made of this very model"
            )
        yield _FileWeight(name, bits, tuple(layers))


def _weight_in(node: NodeProto, dims: dict[str, list[int]]) -> tuple[str, int, int, int] | None:
    """Name, bits, rows and their length of the weight that a node multiplies with or looks up tokens in."""
    attributes = {a.name: a.i for a in node.attribute}
    if node.op_type == "MatMulNBits":
        return node.input[1], attributes["bits"], attributes["N"], attributes["K"]
    if node.op_type == "GatherBlockQuantized":
        name, bits = node.input[0], attributes["bits"]
        return name, bits, dims[name][0], dims[name][1] * attributes["block_size"]
    if node.op_type == "Gather" and node.output[0] == "embedded":
        return node.input[0], 32, dims[node.input[0]][0], dims[node.input[0]][1]
    if node.op_type in ("MatMul", "FusedMatMul") and node.input[1] in dims:
        count, length = dims[node.input[1]][:: 1 if attributes.get("transB") else -1]
        return node.input[1], 32, count, length
    return None


def _take(layer: nn.Module, integers: Tensor, scales: Tensor, bits: int) -> None:
    """Rows [N, K] of integers and scales [N, K / block]."""
    repeated = scales.repeat_interleave(integers.shape[1] // scales.shape[1], dim=1)
    if bits == 4:
        # From the middle of its cell towards its float, less so if that is far: what begins at one place, be it the
        # middle or the edge that GPTQ has moved a weight across, jumps all at once.
        aside = _weight_of(layer) / repeated - integers
        layer.weight = nn.Parameter(integers + 0.5 * aside / (1 + aside.abs()))
        parametrize.register_parametrization(layer, "weight", LowBits(scales))
    else:
        _weight_of(layer).data = integers * repeated


def _grid_of(layer: nn.Module) -> tuple[LowBits, Tensor]:
    """A layer's grid and the steps that are rounded to it."""
    assert parametrize.is_parametrized(layer, "weight")
    parts: Any = layer.parametrizations
    (grid,) = parts["weight"]
    return grid, parts["weight"].original


def _weight_of(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight
