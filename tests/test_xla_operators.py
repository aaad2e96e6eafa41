"""ONNX operators in XLA against ONNX Runtime: floats closely, bytes and whole numbers bit by bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from model_registry.variant import TensorSpec
from tasks.compile.xla_program import call_program, xla_program
from tasks.running.errors import TargetUnsupported

Array = NDArray[Any]
CHANCE = np.random.default_rng(5)
EXACT, CLOSE, NEAR = 0.0, 2e-6, 1e-5
"""Largest difference, relative to the largest magnitude."""
MS = "com.microsoft"
_DATATYPES: dict[str, Any] = {"float32": "FP32", "uint8": "UINT8", "int8": "INT8"}


def floats(*shape: int) -> Array:
    return CHANCE.normal(size=shape).astype(np.float32)


def codes(*shape: int, kind: Any = np.uint8, low: int | None = None, high: int | None = None) -> Array:
    facts = np.iinfo(kind)
    first, last = facts.min if low is None else low, facts.max if high is None else high
    return CHANCE.integers(first, last, shape, kind, endpoint=True)


def weights(*shape: int) -> Array:
    return codes(*shape, kind=np.int8, low=-64, high=64)


def scale(value: float) -> Array:
    return np.array(value, np.float32)


def zero(value: int, kind: Any = np.uint8) -> Array:
    return np.array(value, kind)


@dataclass
class Case:
    """A node, with what it is asked and how closely it must be answered."""

    op: str
    inputs: Mapping[str, Array]
    constants: Mapping[str, Array] = field(default_factory=dict)
    how: Mapping[str, Any] = field(default_factory=dict)
    order: str = ""
    domain: str = ""
    outputs: int = 1
    tolerance: float = CLOSE


def check(*cases: Case) -> None:
    """All cases in one model, since compiling is what takes the time; the batch is free."""
    for case, pairs in zip(cases, answers(cases), strict=True):
        for wanted, got in pairs:
            told = f"{case.op} {dict(case.how)} {[value.shape for value in case.inputs.values()]}"
            assert got.shape == wanted.shape and got.dtype == wanted.dtype, told
            gap = np.abs(got.astype(np.float64) - wanted)[got != wanted].max(initial=0.0)
            assert gap <= case.tolerance * (np.abs(wanted.astype(np.float64)).max(initial=0.0) or 1.0), f"{told}: {gap}"


def answers(cases: tuple[Case, ...]) -> list[list[tuple[Array, Array]]]:
    """By case, each output of ONNX Runtime beside that of XLA."""
    nodes: list[onnx.NodeProto] = []
    given: dict[str, Array] = {}
    constants: list[onnx.TensorProto] = []
    outputs: list[list[str]] = []
    for n, case in enumerate(cases):
        names = case.order.split(",") if case.order else [*case.inputs, *case.constants]
        outputs.append([f"{n}_out{k}" for k in range(case.outputs)])
        asked = [f"{n}_{name}" if name else "" for name in names]
        nodes.append(helper.make_node(case.op, asked, outputs[-1], domain=case.domain, **case.how))
        given |= {f"{n}_{name}": value for name, value in case.inputs.items()}
        constants += [numpy_helper.from_array(np.asarray(v), f"{n}_{name}") for name, v in case.constants.items()]
    tensors = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(value.dtype), [f"b{len(value)}", *value.shape[1:]]
        )
        for name, value in given.items()
    ]
    flat = [name for names in outputs for name in names]
    found = [onnx.helper.make_empty_tensor_value_info(name) for name in flat]
    graph = helper.make_graph(nodes, "cases", tensors, found, constants)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(MS, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=11)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = dict(zip(flat, session.run(None, given), strict=True))
    same_batch = len({len(value) for value in given.values()}) == 1
    specs = [
        TensorSpec(
            name=name,
            datatype=_DATATYPES[str(value.dtype)],
            shape=(-1 if same_batch else len(value), *value.shape[1:]),
        )
        for name, value in given.items()
    ]
    got = dict(zip(flat, call_program(xla_program(model, specs).artifact)(*given.values()), strict=True))
    return [[(wanted[name], got[name]) for name in names] for names in outputs]


def test_functions_of_floats() -> None:
    names = [
        "Abs",
        "Erf",
        "Exp",
        "Floor",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Elu",
        "Gelu",
        "Mish",
        "Neg",
        "Relu",
    ]
    names += ["Selu", "Sigmoid", "Softplus", "Softsign", "Tanh", "Round", "Softmax", "LogSoftmax", "Identity", "Sin"]
    x = {"x": floats(3, 5, 4)}
    two = ("Add", "Sub", "Mul", "Div", "Max", "Min")
    check(
        *(Case(op, x, tolerance=5e-6) for op in names),
        *(Case(op, {"x": floats(3, 5, 4), "y": floats(3, 5, 4)}) for op in two),
        *(Case(op, x, {"y": floats(5, 1) + 3}) for op in two),
        Case("Gelu", x, how={"approximate": "tanh"}),
        Case("QuickGelu", x, domain=MS),
        Case("BiasGelu", x, {"b": floats(4)}, domain=MS),
        Case("Clip", x, {"low": scale(-0.5), "high": scale(0.7)}),
        Case("PRelu", x, {"slope": floats(5, 1)}),
    )


def test_shapes_and_sums() -> None:
    x = {"x": floats(3, 6, 1, 8)}

    def with_(op: str, *constants: Any, **how: Any) -> Case:
        return Case(op, x, {f"c{n}": np.array(value) for n, value in enumerate(constants)}, how)

    check(
        with_("Transpose", perm=[0, 2, 3, 1]),
        with_("Flatten", axis=1),
        with_("Flatten", axis=2),
        with_("Reshape", [0, -1, 2]),
        with_("Squeeze", [2]),
        with_("Unsqueeze", [1, -1]),
        with_("Slice", [1], [1 << 62], [3], [2]),
        with_("Slice", [0], [-1], [1]),
        with_("Gather", [2, -1, 0], axis=3),
        with_("GatherND", [[0, 2], [1, -1]]),
        with_("Pad", [0, 0, 0, 1, 0, 0, 0, 2], mode="reflect"),
        with_("Pad", [0, 1, 0, 1, 0, 0, 0, 2]),
        with_("Expand", [1, 1, 7, 1]),
        with_("Tile", [1, 2, 3, 1]),
        with_("ReduceMean", [1, 3], keepdims=0),
        with_("ReduceMax", [-1]),
        with_("ReduceL2", [1]),
        with_("CumSum", 3),
        Case("Split", x, {"s": np.array([3, 5])}, {"axis": 3}, outputs=2),
        Case("Split", x, how={"axis": 1, "num_outputs": 3}, outputs=3),
        Case("Concat", {"x": floats(3, 3), "y": floats(3, 4)}, how={"axis": 1}),
    )


def test_normalizations() -> None:
    x = {"x": floats(3, 6, 5)}
    channels = {"s": floats(6), "b": floats(6)}
    positive = np.abs(floats(6)) + 1
    check(
        *(Case("LayerNormalization", x, {"s": floats(*s), "b": floats(*s)}, {"axis": a}) for a, s in _ENDS),
        *(Case("RMSNormalization", x, {"s": floats(*s)}, {"axis": a}) for a, s in _ENDS),
        Case("InstanceNormalization", x, channels),
        Case("GroupNormalization", x, channels, {"num_groups": 3}),
        Case("BatchNormalization", x, {**channels, "m": floats(6), "v": positive}),
        Case("SkipLayerNormalization", {**x, "k": floats(3, 6, 5)}, {"g": floats(5), "b": floats(5)}, domain=MS),
    )


_ENDS = ((-1, (5,)), (1, (6, 5)))


def test_products() -> None:
    def gemm(**how: Any) -> Case:
        weight = floats(7, 5) if how["transB"] else floats(5, 7)
        return Case("Gemm", {"x": floats(4, 5)}, {"w": weight, "b": floats(7)}, how)

    def fused(turn_x: int, turn_y: int) -> Case:
        x = floats(4, 5, 4) if turn_x else floats(4, 4, 5)
        weight = floats(7, 5) if turn_y else floats(5, 7)
        how = {"transA": turn_x, "transB": turn_y, "alpha": 0.25}
        return Case("FusedMatMul", {"x": x}, {"w": weight}, how, domain=MS)

    check(
        gemm(transB=0),
        gemm(transB=1, alpha=0.5, beta=2.0),
        Case("MatMul", {"x": floats(4, 3, 5)}, {"w": floats(5, 7)}),
        *(fused(turn_x, turn_y) for turn_x in (0, 1) for turn_y in (0, 1)),
    )


def test_convolutions() -> None:
    ways: list[dict[str, Any]] = [
        {},
        {"strides": [2, 1], "pads": [1, 0, 2, 1]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
        {"dilations": [2, 1]},
        {"group": 2},
        {"group": 4},
    ]
    x = {"x": floats(2, 4, 9, 8)}
    joined = {"Relu": [], "LeakyRelu": [0.2], "Clip": [-0.1, 0.5], "Sigmoid": [], "Tanh": []}
    check(
        *(Case("Conv", x, {"w": floats(8, 4 // how.get("group", 1), 3, 3), "b": floats(8)}, how) for how in ways),
        *(
            Case("ConvTranspose", x, {"w": floats(4, 8 // how.get("group", 1), 3, 2), "b": floats(8)}, how)
            for how in ways
            if "auto_pad" not in how
        ),
        Case(
            "ConvTranspose",
            {"x": floats(2, 4, 5)},
            {"w": floats(4, 3, 3)},
            {"strides": [2], "output_padding": [1], "pads": [1, 0]},
        ),
        *(
            Case(
                "FusedConv",
                {"x": floats(2, 4, 9)},
                {"w": floats(6, 4, 3), "b": floats(6)},
                {"activation": name, **({"activation_params": values} if values else {})},
                domain=MS,
            )
            for name, values in joined.items()
        ),
    )


def test_pools() -> None:
    def cases() -> Iterator[Case]:
        x = {"x": floats(2, 3, 8, 9)}
        for ceil in (0, 1):
            for pads in ([0, 0, 0, 0], [1, 0, 1, 1]):
                how = {"kernel_shape": [3, 2], "strides": [2, 2], "pads": pads, "ceil_mode": ceil}
                yield Case("MaxPool", x, how=how)
                yield Case("MaxPool", {"x": codes(2, 3, 8, 9)}, how=how, tolerance=EXACT)
                yield Case("AveragePool", x, how=how)
                yield Case("AveragePool", x, how={**how, "count_include_pad": 1})
        yield Case("GlobalAveragePool", x)
        yield Case("GlobalMaxPool", x)

    check(*cases())


def test_resizing() -> None:
    check(
        *(
            Case(
                "Resize",
                {"x": floats(2, 3, 6, 6)},
                {"s": np.array([1, 1, size / 6, size / 3], np.float32)},
                {"mode": mode, "coordinate_transformation_mode": places},
                order="x,,s",
                tolerance=NEAR,
            )
            for mode in ("nearest", "linear")
            for places in ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")
            for size in (7, 12, 3)
        )
    )


def test_recurrent_layers() -> None:
    def layer(op: str, direction: str) -> Case:
        gates, ways = {"LSTM": 4, "GRU": 3, "RNN": 1}[op], 2 if direction == "bidirectional" else 1
        constants = {"w": floats(ways, gates * 6, 5), "r": floats(ways, gates * 6, 6), "b": floats(ways, gates * 12)}
        how = {"direction": direction, "hidden_size": 6, **({"linear_before_reset": 1} if op == "GRU" else {})}
        # The first axis is that of the steps, which is as free as a batch.
        return Case(op, {"x": floats(4, 3, 5)}, constants, how, outputs=3 if op == "LSTM" else 2, tolerance=NEAR)

    ways = ("forward", "reverse", "bidirectional")
    check(*(layer(op, direction) for op in ("LSTM", "GRU", "RNN") for direction in ways))


def test_a_million_floats_become_the_same_bytes_and_these_the_same_floats() -> None:
    x = floats(1000, 1000) * 3
    x[0, :4] = [np.inf, -np.inf, 1e30, -1e30]
    steps = [(0.0173, 3, np.uint8), (0.25, 0, np.int8), (1 / 3, 100, np.uint8), (0.1, -7, np.int8)]
    per_channel = {"s": np.abs(floats(6)), "z": codes(6, kind=np.int8)}
    check(
        *(
            Case("QuantizeLinear", {"x": x}, {"s": scale(step), "z": zero(at, kind)}, tolerance=EXACT)
            for step, at, kind in steps
        ),
        Case("DequantizeLinear", {"x": codes(1000, 20)}, {"s": scale(0.0173), "z": zero(120)}, tolerance=EXACT),
        Case("DequantizeLinear", {"x": codes(1000, 6, 5, kind=np.int8)}, per_channel, {"axis": 1}, tolerance=EXACT),
    )


def test_convolutions_of_bytes() -> None:
    def cases() -> Iterator[Case]:
        for kind, at, group in ((np.uint8, 0, 1), (np.uint8, 77, 4), (np.int8, 0, 4), (np.int8, 77, 1)):
            for how in ({}, {"pads": [1, 1, 1, 1], "strides": [2, 2]}, {"dilations": [2, 1]}):
                constants = {
                    "sx": scale(0.02),
                    "zx": zero(at, kind),
                    "w": weights(8, 4 // group, 3, 3),
                    "sw": np.abs(floats(8)) * 0.01 + 1e-3,
                    "zw": np.zeros(8, np.int8),
                    "sy": scale(0.11),
                    "zy": zero(at // 2, kind),
                    "b": CHANCE.integers(-9000, 9000, 8, np.int32),
                }
                inputs, how_ = {"x": codes(5, 4, 9, 8, kind=kind)}, {"group": group, **how}
                yield Case("QLinearConv", inputs, constants, how_, tolerance=EXACT)

    check(*cases())


def test_products_of_bytes() -> None:
    def cases() -> Iterator[Case]:
        x = {"x": codes(50, 33)}
        for around in (0, 128):
            weight, zw = weights(33, 9), np.zeros(9, np.int8)
            if around:
                weight, zw = (weight.astype(np.int32) + 128).astype(np.uint8), np.full(9, 128, np.uint8)
            facts = {
                "sx": scale(0.02),
                "zx": zero(31),
                "w": weight,
                "sw": np.abs(floats(9)) * 0.01,
                "zw": zw,
                "b": CHANCE.integers(-9000, 9000, 9, np.int32),
            }
            yield Case("QGemm", x, facts, domain=MS, tolerance=EXACT)
            yield Case("QGemm", x, {**facts, "sy": scale(0.2), "zy": zero(100)}, domain=MS, tolerance=EXACT)
        weight = weights(33, 9)
        yield Case("MatMulInteger", {"x": codes(50, 4, 33)}, {"w": weight, "zx": zero(7)}, tolerance=EXACT)
        facts = {"sx": scale(0.02), "zx": zero(31), "w": weight, "sw": scale(0.01), "zw": zero(0, np.int8)}
        yield Case("QLinearMatMul", x, {**facts, "sy": scale(0.2), "zy": zero(100)}, tolerance=EXACT)
        dynamic = {"w": weight, "sw": scale(0.01), "zw": zero(0, np.int8), "b": floats(9)}
        yield Case("DynamicQuantizeMatMul", {"x": floats(50, 33)}, dynamic, domain=MS)
        yield Case("DynamicQuantizeLinear", {"x": floats(50, 33)}, outputs=3, tolerance=EXACT)
        for bits in (4, 8):
            how = {"K": 50, "N": 24, "bits": bits, "block_size": 32, "accuracy_level": 1}
            packed = {"w": codes(24, 2, 32 * bits // 8), "s": floats(48)}
            yield Case("MatMulNBits", {"x": floats(50, 50)}, packed, how, domain=MS, tolerance=NEAR)

    check(*cases())


def test_every_pair_of_bytes() -> None:
    def cases() -> Iterator[Case]:
        for kind in (np.uint8, np.int8):
            x, y = (v.astype(np.uint8).view(kind).reshape(256, 256) for v in np.divmod(np.arange(65536), 256))
            for a, b, c in ((0.02, 0.03, 0.05), (0.5, 0.001, 0.4), (0.1, 0.1, 0.1)):
                facts = {"sx": scale(a), "zx": zero(3, kind), "sy": scale(b), "zy": zero(90, kind)}
                facts |= {"sz": scale(c), "zz": zero(17, kind)}
                for op in ("QLinearAdd", "QLinearMul"):
                    order = "x,sx,zx,y,sy,zy,sz,zz"
                    yield Case(op, {"x": x, "y": y}, facts, order=order, domain=MS, tolerance=EXACT)

    check(*cases())


def test_functions_of_bytes() -> None:
    x = {"x": codes(8, 4, 6, 6)}
    facts = {"sx": scale(0.05), "zx": zero(120), "sy": scale(0.004), "zy": zero(0)}
    leaky = {**facts, "sy": scale(0.06), "zy": zero(60)}
    parts = {"x": codes(8, 3), "y": codes(8, 4)}
    both = {"s": scale(0.1), "z": zero(4), "sx": scale(0.1), "zx": zero(4), "sy": scale(0.03), "zy": zero(9)}
    check(
        Case("QLinearSigmoid", x, facts, domain=MS, tolerance=EXACT),
        Case("QLinearLeakyRelu", x, leaky, {"alpha": 0.1}, domain=MS, tolerance=EXACT),
        Case("QLinearGlobalAveragePool", x, facts | {"sy": scale(0.01)}, domain=MS, tolerance=EXACT),
        Case("QLinearConcat", parts, both, {"axis": 1}, "s,z,x,sx,zx,y,sy,zy", domain=MS, tolerance=EXACT),
    )


def test_means_of_bytes_differ_in_the_middle_between_two_at_most() -> None:
    facts = {"sx": scale(0.05), "zx": zero(5), "sy": scale(0.05), "zy": zero(9)}
    how = {"kernel_shape": [2, 3], "strides": [2, 1], "pads": [1, 1, 0, 2]}
    (((wanted, got),),) = answers((Case("QLinearAveragePool", {"x": codes(16, 8, 12, 12)}, facts, how, domain=MS),))
    assert np.abs(got.astype(int) - wanted).max() <= 1
    assert (got != wanted).mean() < 0.15


def test_what_is_not_known_names_itself() -> None:
    with pytest.raises(TargetUnsupported, match=r"cannot take Det '0_out0': operator Det is not known"):
        check(Case("Det", {"x": floats(2, 3, 3)}))
    sizes = {"n": np.array([1, 1, 8, 8])}
    with pytest.raises(TargetUnsupported, match=r"Resize '0_out0': mode cubic"):
        check(Case("Resize", {"x": floats(1, 1, 4, 4)}, sizes, {"mode": "cubic"}, order="x,,,n"))
    with pytest.raises(TargetUnsupported, match="a size that is fixed at 2 for axis 0, which is free"):
        sizes = {"n": np.array([2, 1, 8, 8])}
        check(Case("Resize", {"x": floats(2, 1, 4, 4)}, sizes, order="x,,,n"))
