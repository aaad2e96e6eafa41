"""Small ONNX graphs whose int8 form is bad in a known way."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

Array = NDArray[Any]


class Chain:
    """A graph grown layer by layer, from ``image`` [batch, channels, side, side] to ``logits``."""

    def __init__(self, channels: int, side: int, *, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.shape: list[str | int | None] = ["batch", channels, side, side]
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, Array] = {}
        self.tensor = "image"

    def add(self, kind: str, *constants: Array | np.floating[Any], **attributes: Any) -> Chain:
        """Append an operator; its constants become initializers ``w<i>``, ``w<i>b``."""
        number = len(self.nodes)
        names = [f"w{number}{'b' * i}" for i in range(len(constants))]
        self.weights.update({n: np.asarray(c, np.float32) for n, c in zip(names, constants, strict=True)})
        self.nodes.append(helper.make_node(kind, [self.tensor, *names], [f"t{number}"], **attributes))
        self.tensor = f"t{number}"
        return self

    def conv(self, outputs: int, inputs: int, kernel: int, *, group: int = 1, bias: bool = True) -> Chain:
        fan = inputs // group * kernel**2
        weight = self.random.normal(0, fan**-0.5, (outputs, inputs // group, kernel, kernel))
        extra = [self.random.normal(0, 0.1, outputs)] if bias else []
        return self.add("Conv", weight, *extra, pads=[kernel // 2] * 4, group=group)

    def gemm(self, outputs: int, inputs: int) -> Chain:
        weight = self.random.normal(0, inputs**-0.5, (outputs, inputs))
        return self.add("Gemm", weight, self.random.normal(0, 0.1, outputs), transB=1)

    def model(self, *, rank: int = 2, opset: int = 20) -> ModelProto:
        nodes = [NodeProto.FromString(n.SerializeToString()) for n in self.nodes]
        nodes[-1].output[0] = "logits"
        graph = helper.make_graph(
            nodes,
            "net",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", *[None] * (rank - 1)])],
            [numpy_helper.from_array(v, k) for k, v in self.weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
        onnx.checker.check_model(model)
        return model

    def file(self) -> bytes:
        data: bytes = self.model().SerializeToString()
        return data


def mobile(*, uneven: bool, activation: str = "Relu") -> Chain:
    """Conv, depthwise, pointwise, depthwise, pointwise, pooling, Gemm, as MobileNet has them.

    ``uneven``: channels between the layers are scaled up to a thousandfold apart, which changes no answer in fp32.
    """
    clip = [np.float32(0), np.float32(6)] if activation == "Clip" else []
    chain = Chain(3, 8)
    chain.conv(16, 3, 3).add(activation, *clip)
    for _ in range(2):
        chain.conv(16, 16, 3, group=16).add(activation, *clip).conv(16, 16, 1).add(activation, *clip)
    chain.add("GlobalAveragePool").add("Flatten").gemm(10, 16)
    if uneven:
        layers = [n for n in chain.nodes if n.op_type == "Conv"]
        for first, second in itertools.pairwise(layers):
            scale = np.exp(chain.random.uniform(-3.5, 3.5, 16)).astype(np.float32)
            chain.weights[first.input[1]] *= scale[:, None, None, None]
            chain.weights[first.input[2]] *= scale
            weight = chain.weights[second.input[1]]
            weight /= scale[:, None, None, None] if weight.shape[1] == 1 else scale[None, :, None, None]
    return chain


def images(rows: int = 128, channels: int = 3, side: int = 8, seed: int = 1) -> dict[str, Array]:
    """Raw inputs of :class:`Chain`."""
    shape = (rows, channels, side, side)
    return {"image": np.random.default_rng(seed).normal(size=shape).astype(np.float32)}
