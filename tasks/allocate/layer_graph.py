"""One layer as an ONNX graph of its own, as it runs inside a network: fp32, or int8 from input to output."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tasks.allocate.structure import GATES, Work

_OPSET = 20
_FLOAT = ("ConvTranspose", *GATES)


def layer_graph(work: Work, inputs: int, outputs: int, *, int8: bool) -> bytes:
    """The layer with a ReLU after it, random weights, input ``x`` and output ``y``; the batch is free.

    In int8 it is what ``quantize`` writes with method static: unsigned activations, signed weights with a scale per
    output channel, the ReLU in the output's range. ``x`` and ``y`` are UINT8, since neighbours hand those on, and have
    their channels last, which is how ONNX Runtime's int8 convolutions work: it turns tensors round once a network, not
    once a layer. MatMul takes and answers floats, as its int8 kernel does. Layers that static leaves in fp32
    (transposed convolutions, recurrent layers) stay so.
    """
    return _Graph(work, inputs, outputs, int8 and work.operator not in _FLOAT).bytes()


def entrance_graph(values: int, *, int8: bool) -> bytes:
    """What every run pays: the call, and the input read (in int8: quantized)."""
    nodes = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])] if int8 else [_node("Identity", ["x"], "y")]
    constants = [_constant("s", np.float32(0.02)), _constant("z", np.uint8(128))] if int8 else []
    return _model(nodes, constants, TensorProto.FLOAT, [values], TensorProto.UINT8 if int8 else TensorProto.FLOAT)


def empty_graph() -> bytes:
    """A call that does nothing."""
    return _model([_node("Identity", ["x"], "y")], [], TensorProto.FLOAT, [], TensorProto.FLOAT)


class _Graph:
    def __init__(self, work: Work, inputs: int, outputs: int, int8: bool) -> None:
        self.work, self.inputs, self.outputs, self.int8 = work, inputs, outputs, int8
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def bytes(self) -> bytes:
        float_out = not self.int8 or self.work.last or self.work.operator == "MatMul"
        turned = self.int8 and len(self.work.size) == 2 and self.work.operator == "Conv"
        x = self._add("Transpose", ["x"], "x_first", perm=[0, 3, 1, 2]) if turned else "x"
        if self.int8 and self.work.operator == "MatMul":
            x = self._add("QuantizeLinear", [x, *self._scale("x")], "x_quantized")
            x = self._add("DequantizeLinear", [x, "x_scale", "x_zero"], "x_float")
        elif self.int8:
            x = self._add("DequantizeLinear", [x, *self._scale("x")], "x_float")
        made = self._product(x)
        if not self.work.last:
            made = self._add("Relu", [made], "relu")
        if not float_out:
            made = self._add("QuantizeLinear", [made, *self._scale("y")], "quantized")
        if turned:
            self._add("Transpose", [made], "y", perm=[0, 2, 3, 1])
        self.nodes[-1].output[0] = "y"
        float_in = not self.int8 or self.work.operator == "MatMul"
        kind = TensorProto.FLOAT if float_in else TensorProto.UINT8
        out = TensorProto.FLOAT if float_out else TensorProto.UINT8
        return _model(self.nodes, self.constants, kind, self._shape(), out)

    def _shape(self) -> list[int]:
        if self.work.operator == "Gemm":
            return [self.inputs]
        if self.work.operator in ("MatMul", *GATES):
            return [*self.work.size, self.inputs]
        if self.int8 and len(self.work.size) == 2:
            return [*self.work.size, self.inputs]
        return [self.inputs, *self.work.size]

    def _product(self, x: str) -> str:
        work = self.work
        if work.operator in GATES:
            return self._recurrent(x)
        if work.operator == "MatMul":
            product = self._add("MatMul", [x, self._weight((self.inputs, self.outputs), axis=1)], "product")
            self.constants.append(_constant("bias", _random((self.outputs,))))
            return self._add("Add", [product, "bias"], "sum")
        if work.operator == "Gemm":
            weight = self._weight((self.outputs, self.inputs), axis=0)
            return self._add("Gemm", [x, weight, self._bias()], "product", transB=1)
        groups = self.outputs if work.depthwise else work.groups
        shape = (self.outputs, self.inputs // groups, *work.kernel)
        if work.operator == "ConvTranspose":
            shape = (self.inputs, self.outputs // groups, *work.kernel)
        attributes: dict[str, Any] = {
            "kernel_shape": work.kernel,
            "strides": work.stride,
            "pads": work.pads,
            "dilations": work.dilation,
            "group": groups,
        }
        return self._add(work.operator, [x, self._weight(shape, axis=0), self._bias()], "product", **attributes)

    def _recurrent(self, x: str) -> str:
        """All layers of the module, over steps first as the operator wants them."""
        work = self.work
        units, rows = self.outputs // work.directions, GATES[work.operator] * (self.outputs // work.directions)
        steps, read = self._add("Transpose", [x], "turned", perm=[1, 0, 2]), self.inputs
        self.constants.append(_constant("shape", np.array([0, 0, self.outputs])))
        for layer in range(work.layers):
            weights = [f"w{layer}", f"r{layer}", f"b{layer}"]
            shapes = [(work.directions, rows, read), (work.directions, rows, units), (work.directions, 2 * rows)]
            self.constants += [_constant(n, _random(s)) for n, s in zip(weights, shapes, strict=True)]
            direction = "bidirectional" if work.directions == 2 else "forward"
            attributes: dict[str, Any] = {"hidden_size": units, "direction": direction}
            if work.operator == "GRU":
                attributes["linear_before_reset"] = 1
            answers = self._add(work.operator, [steps, *weights], f"answers{layer}", **attributes)
            beside = self._add("Transpose", [answers], f"beside{layer}", perm=[0, 2, 1, 3])
            steps, read = self._add("Reshape", [beside, "shape"], f"steps{layer}"), self.outputs
        return self._add("Transpose", [steps], "product", perm=[1, 0, 2])

    def _weight(self, shape: tuple[int, ...], axis: int) -> str:
        if not self.int8:
            self.constants.append(_constant("weight", _random(shape)))
            return "weight"
        self.constants += [
            _constant("weight", (_random(shape) * 60).astype(np.int8)),
            _constant("weight_scale", np.full(shape[axis], 0.02, np.float32)),
        ]
        # Gemm and MatMul find their int8 kernels only where the zero point is written out (ONNX Runtime 1.31).
        zero = ["weight_zero"] if self.work.operator in ("Gemm", "MatMul") else []
        if zero:
            self.constants.append(_constant("weight_zero", np.zeros(shape[axis], np.int8)))
        return self._add("DequantizeLinear", ["weight", "weight_scale", *zero], "weight_float", axis=axis)

    def _bias(self) -> str:
        if not self.int8:
            self.constants.append(_constant("bias", _random((self.outputs,))))
            return "bias"
        self.constants += [
            _constant("bias", np.ones(self.outputs, np.int32)),
            _constant("bias_scale", np.full(self.outputs, 0.02 * 0.02, np.float32)),
        ]
        return self._add("DequantizeLinear", ["bias", "bias_scale"], "bias_float", axis=0)

    def _scale(self, name: str) -> list[str]:
        self.constants += [_constant(f"{name}_scale", np.float32(0.02)), _constant(f"{name}_zero", np.uint8(0))]
        return [f"{name}_scale", f"{name}_zero"]

    def _add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(_node(operator, inputs, output, **attributes))
        return output


def _node(operator: str, inputs: list[str], output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(operator, inputs, [output], name=f"{operator}_{output}", **attributes)


def _constant(name: str, value: NDArray[Any] | np.generic) -> TensorProto:
    return numpy_helper.from_array(np.asarray(value), name)


def _random(shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def _model(nodes: list[NodeProto], constants: list[TensorProto], kind: int, shape: list[int], out: int) -> bytes:
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", kind, ["batch", *shape])],
        [helper.make_tensor_value_info("y", out, None)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10)
    data: bytes = onnx.ModelProto.SerializeToString(model, deterministic=True)
    return data
