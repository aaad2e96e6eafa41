"""ONNX operators in torch: each node becomes a function of its input tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx
import torch
from onnx import NodeProto
from torch import Tensor
from torch.nn import functional

from tasks.onnx_models.node_attributes import NodeAttributes
from tasks.qat.qdq_graph import say
from tasks.running.errors import QatUnsupported

Operation = Callable[..., Tensor]
"""Takes the node's inputs in order, None for those left out, and answers its first output."""

_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}
_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
_MAXIMA = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_MEANS = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


class Attributes(NodeAttributes):
    """A node that is trained, and how it is refused."""

    def refuse(self, why: str) -> QatUnsupported:
        """The error for what this node asks."""
        return QatUnsupported(
            f"{say(self.node)}: {why} is not supported in quantization-aware training; leave qat out for this model",
            node=self.node.name or self.node.output[0],
            operator=self.node.op_type,
        )


def operation(node: NodeProto) -> Operation:
    """The node as a function.

    Raises:
        QatUnsupported: names node and operator.
    """
    make = _OPERATORS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    known = Attributes(node)
    if make is None:
        raise known.refuse(f"operator {node.domain + '.' if node.domain else ''}{node.op_type}")
    if len([name for name in node.output if name]) > 1:
        raise known.refuse("a second output")
    made: Operation = make(known)
    return made


def _pads(a: Attributes, size: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """Begins, then ends, as ONNX writes them."""
    rank, how = len(kernel), a.get("auto_pad", "NOTSET")
    if how in ("NOTSET", ""):
        return list(a.get("pads", [0] * 2 * rank))
    if how == "VALID":
        return [0] * 2 * rank
    strides, dilations = a.get("strides", [1] * rank), a.get("dilations", [1] * rank)
    begins, ends = [], []
    for length, width, stride, dilation in zip(size, kernel, strides, dilations, strict=True):
        total = max(0, (-(-length // stride) - 1) * stride + (width - 1) * dilation + 1 - length)
        small, large = total // 2, total - total // 2
        begins.append(small if how == "SAME_UPPER" else large)
        ends.append(large if how == "SAME_UPPER" else small)
    return begins + ends


def _padded(x: Tensor, pads: list[int], value: float) -> tuple[Tensor, list[int]]:
    """x and what the operator itself is to pad on both sides; uneven pads are added to x here."""
    rank = len(pads) // 2
    if pads[:rank] == pads[rank:]:
        return x, pads[:rank]
    turned = [pads[axis + side * rank] for axis in reversed(range(rank)) for side in (0, 1)]
    return functional.pad(x, turned, value=value), [0] * rank


def _conv(a: Attributes) -> Operation:
    group = a.get("group", 1)

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rank = weight.ndim - 2
        x, pads = _padded(x, _pads(a, x.shape[2:], weight.shape[2:]), 0.0)
        strides, dilations = a.get("strides", [1] * rank), a.get("dilations", [1] * rank)
        y: Tensor = _CONVOLUTIONS[rank](x, weight, bias, strides, pads, dilations, group)
        return y

    return run


def _conv_transpose(a: Attributes) -> Operation:
    if a.get("auto_pad", "NOTSET") not in ("NOTSET", "") or a.get("output_shape"):
        raise a.refuse("ConvTranspose with auto_pad or output_shape")
    group = a.get("group", 1)

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rank = weight.ndim - 2
        pads = list(a.get("pads", [0] * 2 * rank))
        if pads[:rank] != pads[rank:]:
            raise a.refuse("uneven padding of ConvTranspose")
        strides, dilations = a.get("strides", [1] * rank), a.get("dilations", [1] * rank)
        more = a.get("output_padding", [0] * rank)
        y: Tensor = _TRANSPOSED[rank](x, weight, bias, strides, pads[:rank], more, group, dilations)
        return y

    return run


def _resize(a: Attributes) -> Operation:
    """As torch writes its upsampling: linear with pixels as areas or with aligned corners, or the nearest pixel."""
    mode, places = a.get("mode", "nearest"), a.get("coordinate_transformation_mode", "half_pixel")
    linear = mode == "linear" and places in ("half_pixel", "pytorch_half_pixel", "align_corners")
    nearest = (mode, places, a.get("nearest_mode", "round_prefer_floor")) == ("nearest", "asymmetric", "floor")
    if not (linear or nearest) or a.get("antialias", 0) or a.get("axes"):
        raise a.refuse(f"Resize with mode {mode} and coordinates {places}")

    def run(x: Tensor, roi: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None) -> Tensor:
        rank = x.ndim - 2
        if sizes is not None and sizes.numel():
            size = [int(n) for n in sizes.tolist()[2:]]
        elif scales is not None:
            size = [int(n * scale) for n, scale in zip(x.shape[2:], scales.tolist()[2:], strict=True)]
        else:
            raise a.refuse("Resize without scales and sizes")
        if nearest:
            return functional.interpolate(x, size, mode="nearest")
        return functional.interpolate(x, size, mode=_LINEAR[rank], align_corners=places == "align_corners")

    return run


def _gemm(a: Attributes) -> Operation:
    if (a.get("alpha", 1.0), a.get("beta", 1.0), a.get("transA", 0)) != (1.0, 1.0, 0):
        raise a.refuse("Gemm with alpha, beta or transA")
    turned = a.get("transB", 0)

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return functional.linear(x, weight if turned else weight.T, bias)

    return run


def _max_pool(a: Attributes) -> Operation:
    kernel = a.get("kernel_shape")

    def run(x: Tensor) -> Tensor:
        x, pads = _padded(x, _pads(a, x.shape[2:], kernel), float("-inf"))
        y: Tensor = _MAXIMA[len(kernel)](
            x,
            kernel,
            a.get("strides", [1] * len(kernel)),
            pads,
            a.get("dilations", [1] * len(kernel)),
            bool(a.get("ceil_mode", 0)),
        )
        return y

    return run


def _average_pool(a: Attributes) -> Operation:
    kernel = a.get("kernel_shape")
    whole = bool(a.get("count_include_pad", 0))
    if any(d != 1 for d in a.get("dilations", [])):
        raise a.refuse("dilation of AveragePool")

    def run(x: Tensor) -> Tensor:
        before = x
        x, pads = _padded(x, _pads(a, x.shape[2:], kernel), 0.0)
        if x is not before and not whole:
            raise a.refuse("uneven padding of AveragePool")
        strides = a.get("strides", [1] * len(kernel))
        y: Tensor = _MEANS[len(kernel)](x, kernel, strides, pads, bool(a.get("ceil_mode", 0)), whole)
        return y

    return run


def _global_average(a: Attributes) -> Operation:
    return lambda x: x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)


def _axes(a: Attributes, given: Tensor | None) -> tuple[int, ...] | None:
    """An input in new opsets, an attribute in old ones."""
    found = given.tolist() if given is not None else a.get("axes")
    return tuple(found) if found is not None else None


def _reduce_mean(a: Attributes) -> Operation:
    keep = bool(a.get("keepdims", 1))

    def run(x: Tensor, axes: Tensor | None = None) -> Tensor:
        dims = _axes(a, axes)
        if not dims and a.get("noop_with_empty_axes", 0):
            return x
        return x.mean(dim=dims or tuple(range(x.ndim)), keepdim=keep)

    return run


def _squeeze(a: Attributes) -> Operation:
    def run(x: Tensor, axes: Tensor | None = None) -> Tensor:
        dims = _axes(a, axes)
        return x.squeeze() if dims is None else x.squeeze(dims)

    return run


def _unsqueeze(a: Attributes) -> Operation:
    def run(x: Tensor, axes: Tensor | None = None) -> Tensor:
        dims = _axes(a, axes) or ()
        for dim in sorted(d % (x.ndim + len(dims)) for d in dims):
            x = x.unsqueeze(dim)
        return x

    return run


def _reshape(a: Attributes) -> Operation:
    zero = a.get("allowzero", 0)

    def run(x: Tensor, shape: Tensor) -> Tensor:
        wanted = [int(n) for n in shape.tolist()]
        return x.reshape([x.shape[i] if n == 0 and not zero else n for i, n in enumerate(wanted)])

    return run


def _flatten(a: Attributes) -> Operation:
    def run(x: Tensor) -> Tensor:
        axis = a.get("axis", 1)
        rows = 1
        for size in x.shape[: axis % x.ndim if axis < 0 else axis]:
            rows *= size
        return x.reshape(rows, -1)

    return run


def _transpose(a: Attributes) -> Operation:
    order = a.get("perm")
    return lambda x: x.permute(order if order is not None else tuple(reversed(range(x.ndim))))


def _pad(a: Attributes) -> Operation:
    mode = a.get("mode", "constant")
    if mode not in ("constant", "reflect", "edge"):
        raise a.refuse(f"Pad with mode {mode}")

    def run(x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
        if axes is not None:
            raise a.refuse("Pad of chosen axes")
        amounts = pads.tolist() if pads is not None else list(a.get("pads"))
        rank = len(amounts) // 2
        turned = [amounts[axis + side * rank] for axis in reversed(range(rank)) for side in (0, 1)]
        if mode == "constant":
            return functional.pad(x, turned, value=float(value) if value is not None else 0.0)
        while len(turned) > 2 and turned[-2:] == [0, 0]:
            turned = turned[:-2]
        return functional.pad(x, turned, mode="replicate" if mode == "edge" else mode)

    return run


def _clip(a: Attributes) -> Operation:
    def run(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
        lowest = float(low) if low is not None else a.get("min")
        highest = float(high) if high is not None else a.get("max")
        return x if lowest is None and highest is None else x.clamp(lowest, highest)

    return run


def _cast(a: Attributes) -> Operation:
    kind = onnx.helper.tensor_dtype_to_np_dtype(a.get("to"))
    dtype = {"float32": torch.float32, "float64": torch.float64, "int64": torch.int64, "int32": torch.int32,
             "uint8": torch.uint8, "int8": torch.int8, "bool": torch.bool}.get(kind.name)  # fmt: skip
    if dtype is None:
        raise a.refuse(f"Cast to {kind.name}")
    return lambda x: x.to(dtype)


def _concat(a: Attributes) -> Operation:
    return lambda *xs: torch.cat(xs, dim=a.get("axis"))


def _softmax(a: Attributes) -> Operation:
    return lambda x: x.softmax(dim=a.get("axis", -1))


def _leaky(a: Attributes) -> Operation:
    return lambda x: functional.leaky_relu(x, a.get("alpha", 0.01))


def _hard_sigmoid(a: Attributes) -> Operation:
    alpha, beta = a.get("alpha", 0.2), a.get("beta", 0.5)
    return lambda x: (x * alpha + beta).clamp(0.0, 1.0)


def _gelu(a: Attributes) -> Operation:
    return lambda x: functional.gelu(x, approximate=a.get("approximate", "none"))


def _elu(a: Attributes) -> Operation:
    return lambda x: functional.elu(x, alpha=a.get("alpha", 1.0))


def _layer_norm(a: Attributes) -> Operation:
    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        shape = x.shape[a.get("axis", -1) % x.ndim :]
        return functional.layer_norm(x, shape, weight, bias, a.get("epsilon", 1e-5))

    return run


def _batch_norm(a: Attributes) -> Operation:
    def run(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return functional.batch_norm(x, mean, variance, weight, bias, eps=a.get("epsilon", 1e-5))

    return run


def _gather(a: Attributes) -> Operation:
    def run(x: Tensor, index: Tensor) -> Tensor:
        axis = a.get("axis", 0) % x.ndim
        flat = index.reshape(-1).to(x.device)
        found = x.index_select(axis, torch.where(flat < 0, flat + x.shape[axis], flat))
        return found.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])

    return run


def _slice(a: Attributes) -> Operation:
    def run(x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None) -> Tensor:
        first = starts.tolist()
        dims = axes.tolist() if axes is not None else list(range(len(first)))
        every = steps.tolist() if steps is not None else [1] * len(first)
        if min(every) < 1:
            raise a.refuse("Slice with a negative step")
        cut = [slice(None)] * x.ndim
        for dim, begin, end, step in zip(dims, first, ends.tolist(), every, strict=True):
            cut[dim] = slice(*slice(begin, end, step).indices(x.shape[dim]))
        return x[tuple(cut)]

    return run


def _shape(a: Attributes) -> Operation:
    return lambda x: torch.tensor(x.shape[a.get("start", 0) : a.get("end")], dtype=torch.int64)


def _plain(function: Operation) -> Callable[[Attributes], Operation]:
    return lambda a: function


def _divide(x: Tensor, y: Tensor) -> Tensor:
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


_OPERATORS: dict[str, Callable[[Attributes], Operation]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Resize": _resize,
    "Gemm": _gemm,
    "MatMul": _plain(torch.matmul),
    "Relu": _plain(torch.relu),
    "Clip": _clip,
    "LeakyRelu": _leaky,
    "Elu": _elu,
    "Sigmoid": _plain(torch.sigmoid),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _plain(functional.hardswish),
    "Tanh": _plain(torch.tanh),
    "Erf": _plain(torch.erf),
    "Gelu": _gelu,
    "Softmax": _softmax,
    "Sqrt": _plain(torch.sqrt),
    "Reciprocal": _plain(torch.reciprocal),
    "Abs": _plain(torch.abs),
    "Neg": _plain(torch.neg),
    "Exp": _plain(torch.exp),
    "Log": _plain(torch.log),
    "Pow": _plain(torch.pow),
    "Add": _plain(torch.add),
    "Sub": _plain(torch.sub),
    "Mul": _plain(torch.mul),
    "Div": _plain(_divide),
    "IsNaN": _plain(torch.isnan),
    "Where": _plain(torch.where),
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average,
    "ReduceMean": _reduce_mean,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Concat": _concat,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Gather": _gather,
    "Slice": _slice,
    "Shape": _shape,
    "Pad": _pad,
    "Cast": _cast,
    "Identity": _plain(lambda x: x),
}
