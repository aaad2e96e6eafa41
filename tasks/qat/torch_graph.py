"""A QDQ ONNX graph as a torch module that computes the same and can be trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, NodeProto
from torch import Tensor, nn

from tasks.qat.lsq import ActivationQuantizer, WeightQuantizer
from tasks.qat.qdq_graph import LAYERS, Array, QdqGraph, attribute, read_qdq, say, separate
from tasks.qat.torch_operators import Operation, operation
from tasks.running.errors import QatUnsupported

_BIAS_LIMIT = 2.0**31 - 128
"""The largest float32 that an int32 holds."""


class QatLayer(nn.Module):
    """A convolution or matrix product with a trained weight, int8 or float, and its bias.

    In evaluation a layer whose input and weight are quantized sums whole numbers, as the int8 kernel does: float32
    holds them exactly up to 2^24, where sums of scaled values differ in the last bits and round differently later.

    Args:
        run: of the input, the weight and the bias.
        kernel: the weight.
        bias: float values; None = none.
        source: the input's quantizer; None = the input or the weight is not quantized.
        whole_bias: the bias is a multiple of the product of both scales: int32 in the file, or as soon as it is loaded.
        outputs: the dimension of the outputs in the weight (0 or its last).
        channels: their dimension in what the layer answers.
    """

    def __init__(
        self,
        run: Operation,
        kernel: WeightQuantizer | nn.Parameter,
        bias: Tensor | None,
        source: ActivationQuantizer | None,
        *,
        whole_bias: bool,
        outputs: int,
        channels: int,
    ) -> None:
        super().__init__()
        self.run, self.kernel, self.outputs, self.channels = run, kernel, outputs, channels
        self.bias = nn.Parameter(bias.float().clone()) if bias is not None else None
        self.whole_bias = whole_bias
        self._source = [source]  # in a list: it is registered with the graph, and here only looked at

    @property
    def weight(self) -> Tensor:
        """Outputs first: what counts multiply-accumulates looks for it."""
        weight: Tensor = self.kernel.latent if isinstance(self.kernel, WeightQuantizer) else self.kernel
        return weight.movedim(self.outputs, 0)

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(self.kernel, WeightQuantizer):
            return self._answer(x, self.kernel, self.bias)
        if self.training or self._source == [None]:
            return self._answer(x, self.kernel(), self._trained_bias())
        (source,) = self._source
        assert source is not None
        whole = (x / source.scale()).round()
        bias = self.bias_integers() if self.whole_bias else None
        sums = self._answer(whole, self.kernel.integers().float(), bias)
        y = sums * self._along_channels(self.step(), sums.ndim)
        return y + self._along_channels(self.bias, y.ndim) if self.bias is not None and bias is None else y

    def step(self) -> Tensor:
        """What one unit of the integer sums is worth, [1] or [outputs]; of layers with a quantized input and weight."""
        (source,) = self._source
        assert source is not None and isinstance(self.kernel, WeightQuantizer)
        step: Tensor = source.scale() * self.kernel.scale()
        return step

    def rounded_bias(self) -> Tensor:
        """The bias as it is written."""
        assert self.bias is not None
        return self.bias_integers() * self.step() if self.whole_bias else self.bias

    def bias_integers(self) -> Tensor:
        """The int32 bias as whole floats."""
        assert self.bias is not None
        return (self.bias / self.step()).clamp(-_BIAS_LIMIT, _BIAS_LIMIT).round()

    def _trained_bias(self) -> Tensor | None:
        """Rounded, with the gradient of one that is not."""
        if self.bias is None or not self.whole_bias:
            return self.bias
        with torch.no_grad():
            error = self.rounded_bias() - self.bias
        return self.bias + error

    def _answer(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self.run(x, weight) if bias is None else self.run(x, weight, bias)

    def _along_channels(self, values: Tensor, rank: int) -> Tensor:
        shape = [1] * rank
        shape[self.channels] = -1
        return values.reshape(shape)


class Shift(nn.Module):
    """A trained bias that is added to a matrix product."""

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class TorchGraph(nn.Module):
    """Runs the nodes of a QDQ model in order, on float tensors that lie on the int8 grids.

    Trained are the weights and biases of Conv, Gemm and MatMul and the scales; other constants (preprocessing, norms)
    stay. Called with the graph's inputs by name, answers its first output.

    Args:
        model: as static quantization wrote it.
        floats: the weights before they were rounded, by output name of their DequantizeLinear; where one is missing
            training starts at the rounded values.

    Raises:
        QatUnsupported: an operator or a way of quantizing that is not known here; names node and operator.
    """

    def __init__(self, model: ModelProto, floats: Mapping[str, Array] | None = None) -> None:
        super().__init__()
        self.graph = read_qdq(model)
        separate(self.graph)
        self.output = self.graph.model.graph.output[0].name
        self.scales = nn.ModuleList(
            ActivationQuantizer(_tensor(a.scale), a.zero_point, a.lowest, a.highest)
            for a in self.graph.activations.values()
        )
        self.weights = nn.ModuleDict()
        for name, weight in self.graph.weights.items():
            latent = _latent(weight.data, weight.scale, weight.axis, (floats or {}).get(name))
            limit = 64 if np.abs(weight.data.astype(int)).max(initial=0) <= 64 else 127
            self.weights[_key(name)] = WeightQuantizer(
                _tensor(latent), _tensor(weight.scale), axis=weight.axis, limit=limit
            )
        self.layers = nn.ModuleDict()
        self.floats: dict[str, tuple[str, str]] = {}
        self.constants: dict[str, Tensor] = {}
        self._steps: list[tuple[NodeProto, Operation, tuple[str, ...]]] = []
        for node in self.graph.model.graph.node:
            self._add(node)
        self._place_constants()

    def forward(self, **inputs: Tensor) -> Tensor:
        """The first output [N, ...] for raw inputs by name."""
        values: dict[str, Tensor | None] = {**self.constants, **dict(self.named_buffers(recurse=False)), **inputs}
        values[""] = None
        for node, run, names in self._steps:
            values[node.output[0]] = run(*(values[name] for name in names))
        answer = values[self.output]
        assert answer is not None
        return answer

    def bias_layers(self) -> dict[str, QatLayer]:
        """Layers with an int32 bias, by output name of the bias's DequantizeLinear."""
        found = {}
        for node in self.graph.model.graph.node:
            if node.op_type in LAYERS and len(node.input) > 2 and node.input[2] in self.graph.biases:
                layer = self.layers[_key(node.output[0])]
                assert isinstance(layer, QatLayer)
                found[node.input[2]] = layer
        return found

    def quantizer(self, number: int) -> ActivationQuantizer:
        """The quantizer of that number in ``graph.activations``."""
        found = self.scales[number]
        assert isinstance(found, ActivationQuantizer)
        return found

    def weight(self, name: str) -> WeightQuantizer:
        """The weight behind the DequantizeLinear of that output name."""
        found = self.weights[_key(name)]
        assert isinstance(found, WeightQuantizer)
        return found

    def output_scale(self) -> float | None:
        """Of the last quantizer, if the output is quantized."""
        last = self.graph.source(self.output)
        return float(self.quantizer(self.graph.quantized[last]).scale()) if last is not None else None

    def trained_floats(self) -> dict[str, Tensor]:
        """Weights and biases that stay float, by name of their initializer."""
        found = dict[str, Tensor]()
        for name, (key, what) in self.floats.items():
            layer = self.layers[key]
            if what == "bias" and isinstance(layer, QatLayer):
                found[name] = layer.rounded_bias()
            else:
                found[name] = getattr(layer, what)
        return found

    def _add(self, node: NodeProto) -> None:
        output, graph = node.output[0], self.graph
        if output in graph.quantized:
            run: Operation = _same if output in graph.kept else self.quantizer(graph.quantized[output])
            self._steps.append((node, run, (node.input[0],)))
        elif output in graph.dequantized:
            self._steps.append((node, _same, (node.input[0],)))
        elif output in graph.weights or output in graph.biases:
            return  # part of its layer
        elif node.op_type == "DequantizeLinear":
            self.constants[output] = _dequantized(graph, node)
        elif node.op_type in LAYERS and self._learned(node.input[1]):
            layer = self._layer(node)
            self.layers[_key(output)] = layer
            self._steps.append((node, layer, (node.input[0],)))
        elif node.op_type == "Add" and any(name in graph.floats for name in node.input):
            mine = 0 if node.input[0] in graph.floats else 1
            shift = Shift(_tensor(graph.constants[node.input[mine]]))
            self.layers[_key(output)] = shift
            self.floats[node.input[mine]] = (_key(output), "bias")
            self._steps.append((node, shift, (node.input[1 - mine],)))
        else:
            if any(name in graph.weights for name in node.input):
                raise QatUnsupported(f"{say(node)}: an int8 weight is its first input; training knows it as second")
            self._steps.append((node, operation(node), tuple(node.input)))

    def _learned(self, name: str) -> bool:
        return name in self.graph.weights or name in self.graph.floats

    def _layer(self, node: NodeProto) -> QatLayer:
        graph, name = self.graph, node.input[1]
        turned = node.op_type == "MatMul" or (node.op_type == "Gemm" and not attribute(node, "transB", 0))
        outputs = graph.constants[name].ndim - 1 if name in graph.floats else graph.weights[name].data.ndim - 1
        outputs = outputs if turned else 0
        source = None
        if name in graph.floats:
            kernel: WeightQuantizer | nn.Parameter = nn.Parameter(_tensor(graph.floats[name]))
            self.floats[name] = (_key(node.output[0]), "kernel")
        else:
            kernel = self.weight(name)
            if kernel.scale.start.numel() > 1 and kernel.axis != outputs:
                raise QatUnsupported(f"{say(node)}: its weight has a scale per input channel; training knows outputs")
            before = graph.source(node.input[0])
            source = self.quantizer(graph.quantized[before]) if before is not None else None
        given = node.input[2] if len(node.input) > 2 else ""
        bias = None
        if given in graph.biases:
            found = graph.biases[given]
            bias = _tensor((found.data * found.scale.astype(np.float64)).astype(np.float32))
        elif given in graph.floats:
            bias = _tensor(graph.floats[given])
            self.floats[given] = (_key(node.output[0]), "bias")
        elif given:
            raise QatUnsupported(f"{say(node)}: its bias is computed or shared; training knows constants of its own")
        return QatLayer(
            operation(node),
            kernel,
            bias,
            source,
            whole_bias=given in graph.biases or _is_rounded(bias, kernel, source, outputs),
            outputs=outputs,
            channels=1 if node.op_type == "Conv" else -1,
        )

    def _place_constants(self) -> None:
        """Floats move with the module; numbers that are shapes and axes stay where Python reads them."""
        used = {name for _, _, names in self._steps for name in names}
        for name, value in self.graph.constants.items():
            if name in used and name not in self.constants:
                self.constants[name] = _tensor(value)
        for name in [n for n, value in self.constants.items() if value.is_floating_point()]:
            self.register_buffer(_key(name), self.constants.pop(name), persistent=False)
        self._steps = [
            (node, run, tuple(_key(n) if _key(n) in self._buffers else n for n in names))
            for node, run, names in self._steps
        ]


def _is_rounded(
    bias: Tensor | None, kernel: WeightQuantizer | nn.Parameter, source: ActivationQuantizer | None, outputs: int
) -> bool:
    """Whether ONNX Runtime may round a float bias to int32 when it loads the file.

    It does so where input and weight are int8 and a quantizer follows, see :mod:`tasks.onnx_models.float_biases`. Where
    none does, a rounded one is as good.
    """
    if bias is None or source is None or not isinstance(kernel, WeightQuantizer):
        return False
    with torch.no_grad():
        step = source.scale() * kernel.scale()
        fits = bias.shape == (kernel.latent.shape[outputs],) and bool((bias.abs() < step * _BIAS_LIMIT).all())
    return fits


def _same(x: Tensor) -> Tensor:
    return x


def _key(name: str) -> str:
    """A name that torch takes for a submodule or buffer."""
    return "v_" + name.replace("_", "__").replace(".", "_d").replace("/", "_s")


def _tensor(value: Array) -> Tensor:
    return torch.from_numpy(np.array(value))


def _latent(data: Array, scale: Array, axis: int, floats: Array | None) -> Array:
    """Where a weight starts: at its value before rounding, but within the rounding that was chosen for it."""
    shape = [1] * data.ndim
    if scale.size > 1:
        shape[axis] = -1
    step = scale.reshape(shape).astype(np.float64)
    whole = data.astype(np.float64)
    if floats is not None and floats.shape == data.shape:
        whole = np.clip(floats / step, whole - 0.49, whole + 0.49)
    return (whole * step).astype(np.float32)


def _dequantized(graph: QdqGraph, node: NodeProto) -> Tensor:
    """A constant that is no weight, as float."""
    inputs: list[Any] = [graph.constants.get(name) for name in node.input]
    if inputs[1] is None:
        raise QatUnsupported(f"{say(node)}: its scale is computed; training needs it as a constant of the file")
    data, scale = inputs[0].astype(np.float32), inputs[1]
    shape = [1] * data.ndim
    if scale.size > 1:
        shape[attribute(node, "axis", 1)] = -1
    zero = inputs[2].astype(np.float32).reshape(shape) if len(inputs) > 2 else 0.0
    return _tensor(((data - zero) * scale.reshape(shape)).astype(np.float32))
