"""An int8 model as what hardware computes: whole numbers, one layer after the other, shifts between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from tasks.running.errors import TargetUnsupported

Array = NDArray[Any]
_REMEDY = "make the int8 form with quantize: {methods: [static], scales: power_of_two}"


@dataclass(frozen=True)
class Rescale:
    """From sums to bytes: ``sum / 2**shift`` rounded to even, plus ``zero``, at most ``low`` to ``high``."""

    shifts: tuple[int, ...]
    """By output channel; below zero: a multiplication."""
    zero: int
    low: int
    high: int


@dataclass(frozen=True)
class Product:
    """A dense layer (weight [outputs, inputs]) or a convolution ([outputs, inputs / groups, *kernel])."""

    weight: Array
    bias: Array
    """[outputs], whole numbers."""
    zero: int
    """Of its input: what stands for 0.0, also at the edges."""
    rescale: Rescale | None
    """None: it answers the sums themselves."""
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    groups: int = 1


@dataclass(frozen=True)
class MaxOver:
    """The largest byte of each window; what lies outside is smaller than any."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]


@dataclass(frozen=True)
class MeanOver:
    """The mean of each channel, as a sum that is rescaled."""

    zero: int
    out: Rescale
    """For a channel of one place; each doubling of the places is a shift more."""

    def rescale(self, count: int) -> Rescale:
        """For so many places.

        Raises:
            TargetUnsupported: they are no power of two.
        """
        if count & (count - 1):
            raise TargetUnsupported(
                f"target fpga: a mean over {count} places is no shift; pictures whose sides are powers of two have one"
            )
        return replace(self.out, shifts=(self.out.shifts[0] + count.bit_length() - 1,))


@dataclass(frozen=True)
class Reshaped:
    """The same numbers in another shape, [a row's]."""

    shape: tuple[int, ...]


@dataclass(frozen=True)
class Turned:
    """The same numbers with their axes in another order; the batch is axis 0."""

    order: tuple[int, ...]


Layer = Product | MaxOver | MeanOver | Reshaped | Turned


@dataclass(frozen=True)
class IntegerNetwork:
    """A chain of layers on bytes."""

    codes: str
    """The tensor that it begins with, uint8 or int8: an input of the model, or what its first lines quantize."""
    signed: bool
    layers: tuple[Layer, ...]
    scale: Array
    """What a whole number of the answer is worth, float32: one, or one for each output channel."""
    zero: int
    """What stands for 0.0 in the answer."""

    @property
    def multiplications(self) -> int:
        """Weights that are not zero; a convolution does them once for each place."""
        return sum(int(np.count_nonzero(layer.weight)) for layer in self.layers if isinstance(layer, Product))


def integer_network(model: ModelProto) -> IntegerNetwork:
    """Read the chain out of a graph.

    Args:
        model: as ONNX Runtime runs it, see :func:`tasks.onnx_models.graph_as_run.as_run`.

    Raises:
        TargetUnsupported: names the node, what it does, and the nearest form that can be taken.
    """
    return _Reader(model).read()


class _Reader:
    def __init__(self, model: ModelProto) -> None:
        self.graph = model.graph
        self.constants: dict[str, Array] = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
        if len(model.graph.input) != 1 or len(model.graph.output) != 1:
            raise TargetUnsupported(
                f"target fpga takes models of one input and one output; this one has {len(model.graph.input)} and "
                f"{len(model.graph.output)}"
            )

    def read(self) -> IntegerNetwork:
        codes, nodes = self._first_codes()
        layers: list[Layer] = []
        scale, zero, here = np.ones(1, np.float32), 0, codes
        for number, node in enumerate(nodes):
            if node.input[0] != here:
                raise _refuse(node, "it does not follow the layer before: branches are not unrolled")
            last = number == len(nodes) - 1
            if node.op_type == "DequantizeLinear" and last:
                scale, zero = self._value(node, 1).reshape(-1), int(self._value(node, 2, 0))
            elif node.op_type == "QGemm" and len(node.input) < 9:
                if not last:
                    raise _refuse(node, "its floats are used further on")
                layers.append(self._dense(node, None))
                scale = self._float(node, 1) * self._value(node, 4).reshape(-1).astype(np.float32)
            else:
                layers.append(self._layer(node))
            here = node.output[0]
        if here != self.graph.output[0].name:
            raise TargetUnsupported(f"target fpga takes chains of layers; {self.graph.output[0].name!r} is not its end")
        return IntegerNetwork(codes, self._signed, tuple(layers), scale.astype(np.float32), zero)

    def _first_codes(self) -> tuple[str, list[NodeProto]]:
        """The first tensor of bytes, and the nodes behind it. What is before is done by whoever sends the bytes."""
        given = self.graph.input[0]
        if given.type.tensor_type.elem_type in (onnx.TensorProto.UINT8, onnx.TensorProto.INT8):
            first = self.graph.node[0]
            if first.op_type not in ("Cast", "QuantizeLinear"):
                self._signed = given.type.tensor_type.elem_type == onnx.TensorProto.INT8
                return given.name, list(self.graph.node)
        for number, node in enumerate(self.graph.node):
            if node.op_type == "QuantizeLinear":
                self._signed = self._value(node, 2, np.uint8(0)).dtype == np.int8
                return node.output[0], list(self.graph.node[number + 1 :])
        raise TargetUnsupported(f"target fpga takes int8 models, and nothing is quantized in this one; {_REMEDY}")

    def _layer(self, node: NodeProto) -> Layer:
        match node.op_type:
            case "QLinearConv":
                return self._conv(node)
            case "QGemm":
                return self._dense(node, self._rescale(node, self._float(node, 1), 4, 7, 8))
            case "QLinearMatMul":
                return self._matmul(node)
            case "MaxPool":
                kernel = tuple(_get(node, "kernel_shape", ()))
                ones, none = [1] * len(kernel), [0] * 2 * len(kernel)
                if _get(node, "ceil_mode", 0) or any(d != 1 for d in _get(node, "dilations", ones)):
                    raise _refuse(node, "windows that reach past the end, or with gaps")
                return MaxOver(kernel, tuple(_get(node, "strides", ones)), tuple(_get(node, "pads", none)))
            case "QLinearGlobalAveragePool":
                return self._mean(node)
            case "Flatten":
                return Reshaped((-1,))
            case "Reshape":
                shape = [int(n) for n in self._value(node, 1)]
                return Reshaped(tuple(shape[1:]))
            case "Transpose":
                return Turned(tuple(_get(node, "perm", ())))
        raise _refuse(node, "it is no layer of whole numbers that is known here")

    def _conv(self, node: NodeProto) -> Product:
        weight = self._weight(node, 3, 5)
        rank = weight.ndim - 2
        if _get(node, "auto_pad", b"NOTSET") not in (b"NOTSET", b""):
            raise _refuse(node, "auto_pad")
        return Product(
            weight=weight,
            bias=self._value(node, 8, np.zeros(len(weight), np.int32)).astype(np.int64),
            zero=int(self._value(node, 2, 0)),
            rescale=self._rescale(node, self._float(node, 1), 4, 6, 7, channels=len(weight)),
            strides=tuple(_get(node, "strides", [1] * rank)),
            pads=tuple(_get(node, "pads", [0] * 2 * rank)),
            dilations=tuple(_get(node, "dilations", [1] * rank)),
            groups=_get(node, "group", 1),
        )

    def _mean(self, node: NodeProto) -> MeanOver:
        ratio = np.array([self._float(node, 1) / self._float(node, 3)])
        return MeanOver(int(self._value(node, 2, 0)), self._shifted(node, ratio, 4, 1))

    def _dense(self, node: NodeProto, rescale: Rescale | None) -> Product:
        if _get(node, "transA", 0) or _get(node, "alpha", 1.0) != 1.0:
            raise _refuse(node, "transA or alpha")
        weight = self._weight(node, 3, 5)
        weight = weight if _get(node, "transB", 0) else weight.T
        bias = self._value(node, 6, np.zeros(len(weight), np.int32)).reshape(-1).astype(np.int64)
        return Product(weight, bias, int(self._value(node, 2, 0)), _for_each(rescale, len(weight)))

    def _matmul(self, node: NodeProto) -> Product:
        weight = self._weight(node, 3, 5).T
        rescale = self._rescale(node, self._float(node, 1), 4, 6, 7, channels=len(weight))
        return Product(weight, np.zeros(len(weight), np.int64), int(self._value(node, 2, 0)), rescale)

    def _weight(self, node: NodeProto, place: int, zero: int) -> Array:
        if np.any(self._value(node, zero, np.zeros(1, np.int8))):
            raise _refuse(node, "a zero point of its weight")
        return self._value(node, place).astype(np.int64)

    def _rescale(
        self, node: NodeProto, scale: np.float32, weight: int, out: int, zero: int, channels: int = 1
    ) -> Rescale:
        of_weight = self._value(node, weight).reshape(-1).astype(np.float32)
        return self._shifted(node, scale * of_weight / self._float(node, out), zero, max(channels, len(of_weight)))

    def _shifted(self, node: NodeProto, factor: Array, zero: int, channels: int) -> Rescale:
        mantissa, exponent = np.frexp(factor.astype(np.float64))
        if np.any(mantissa != 0.5):
            raise _refuse(node, "a scale that is no power of two")
        at = self._value(node, zero)
        limits = np.iinfo(at.dtype)
        shifts = np.broadcast_to(1 - exponent, (channels,)) if len(factor) == 1 else 1 - exponent
        return Rescale(tuple(map(int, shifts)), int(at), int(limits.min), int(limits.max))

    def _value(self, node: NodeProto, place: int, default: Any = None) -> Array:
        name = node.input[place] if place < len(node.input) else ""
        if name in self.constants:
            return self.constants[name]
        if name or default is None:
            raise _refuse(node, f"{name or place} is no constant")
        return np.asarray(default)

    def _float(self, node: NodeProto, place: int) -> np.float32:
        return np.float32(self._value(node, place).reshape(-1)[0])


def _for_each(rescale: Rescale | None, channels: int) -> Rescale | None:
    if rescale is None or len(rescale.shifts) == channels:
        return rescale
    return Rescale(rescale.shifts * channels, rescale.zero, rescale.low, rescale.high)


def _get(node: NodeProto, name: str, default: Any) -> Any:
    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _refuse(node: NodeProto, why: str) -> TargetUnsupported:
    name = node.name or node.output[0]
    return TargetUnsupported(
        f"target fpga cannot take {node.op_type} {name!r}: {why}; it takes chains of convolutions, dense layers, "
        f"maxima and means of whole numbers: {_REMEDY}",
        node=name,
        operator=node.op_type,
    )


def places(length: int, width: int, stride: int, dilation: int, pads: Sequence[int]) -> list[int]:
    """Where windows begin along one axis, counted in its padded form."""
    return list(range(0, length + sum(pads) - (width - 1) * dilation, stride))
