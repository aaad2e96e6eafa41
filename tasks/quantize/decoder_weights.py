"""Small weights for decoders: MatMulNBits in place of products, and a table of tokens that the head shares.

A decoder reads every weight for every token, so small weights make it fast; activations are rounded to int8 by row and
block inside the kernel (accuracy level 4: without it 8 bits are slower than fp32). Both operators are ONNX
Runtime's (domain com.microsoft, ContribOperators.md: MatMulNBits, GatherBlockQuantized).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tasks.onnx_models.block_rows import pack_rows4, round_rows8
from tasks.quantize.weight_only import round_blocks

_OURS = "com.microsoft"
BLOCKS = {8: (64, 32, 16), 4: (32, 16)}
"""Weights that share a scale, by bits; the first that divides a row. Of 8 bits smaller blocks gain nothing."""
_LEVEL = 4
"""Accuracy level: activations in int8."""


def decoder_products(model: ModelProto) -> dict[str, NodeProto]:
    """Products with constant weights by the name of the weight; a head that is the table of tokens among them."""
    constants = {i.name for i in model.graph.initializer}
    return {
        node.input[1]: node
        for node in model.graph.node
        if node.op_type in ("MatMul", "FusedMatMul") and node.input[1] in constants
    }


class Grid(NamedTuple):
    """How a weight is rounded: 8 or 4 bits, and the number of neighbours in a row that share a scale."""

    bits: int
    block: int

    def size(self, weights: int) -> int:
        """Bytes of that number of weights with their scales."""
        return weights * self.bits // 8 + 4 * weights // self.block


Rounded = Callable[[str, NDArray[Any], Grid], tuple[NDArray[np.uint8], NDArray[np.float32]]]
"""Packed rows [N, K / block, bytes of a block] and scales [N, K / block] of a weight's rows [N, K], by its name."""


def round_to_nearest(_: str, matrix: NDArray[Any], grid: Grid) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Each weight by itself."""
    if grid.bits == 8:
        return round_rows8(matrix, grid.block)
    values, scales = round_blocks(np.ascontiguousarray(matrix.T), grid.block)
    return pack_rows4(np.ascontiguousarray(values.T), np.ascontiguousarray(scales.T))


def quantize_decoder(
    model: ModelProto, grids: Mapping[str, int | Grid], rounded: Rounded = round_to_nearest
) -> ModelProto:
    """The decoder with small weights.

    Args:
        model: as :mod:`tasks.export.decoder_onnx` writes it; not changed.
        grids: how, or 8 or 4 bits, by the name of the weight; what is not named stays in fp32.
    """
    result = ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    products = decoder_products(result)
    weights = {i.name: i for i in graph.initializer if i.name in grids}
    nodes, made, gone = list[NodeProto](), list[TensorProto](), set[str]()
    for node in graph.node:
        if node.op_type == "Gather" and node.input[0] in weights:
            # A head of its own leaves the table alone: then it is rounded by itself.
            nodes += _table(node, *_rows(made, weights[node.input[0]], grids[node.input[0]], gone, rounded))
        elif len(node.input) > 1 and node.input[1] in weights and node.name == products[node.input[1]].name:
            transposed = node.op_type == "FusedMatMul"
            rows = _rows(made, weights[node.input[1]], grids[node.input[1]], gone, rounded, transposed=transposed)
            nodes.append(_product(node, *rows))
        else:
            nodes.append(node)
    copied = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copied)
    kept = [TensorProto.FromString(i.SerializeToString()) for i in graph.initializer if i.name not in gone]
    known = {i.name for i in kept}
    del graph.initializer[:]
    graph.initializer.extend([*kept, *(tensor for tensor in made if tensor.name not in known)])
    return result


def usual_grid(length: int, bits: int) -> Grid | None:
    """How rows of that length are rounded to 8 or 4 bits; None where they cannot be divided into blocks."""
    return next((Grid(bits, block) for block in BLOCKS[bits] if length % block == 0), None)


def table_of(model: ModelProto) -> str | None:
    """Name of the weights that tokens are looked up in; None where there is no such table."""
    return next((n.input[0] for n in model.graph.node if n.op_type == "Gather" and n.output[0] == "embedded"), None)


def _rows(
    made: list[TensorProto],
    weight: TensorProto,
    asked: int | Grid,
    gone: set[str],
    rounded: Rounded,
    *,
    transposed: bool = True,
) -> tuple[str, int, int, int, int]:
    """Name of the rounded weights [N, K / block, bytes of a block], N, K, bits, block; ``made``, unless they are."""
    matrix = numpy_helper.to_array(weight)
    matrix = matrix if transposed else matrix.T
    count, length = matrix.shape
    grid = usual_grid(length, asked) if isinstance(asked, int) else asked
    assert grid is not None, "asked for before"
    name = f"{weight.name}_int{grid.bits}"
    if weight.name not in gone:
        gone.add(weight.name)
        packed, scales = rounded(weight.name, matrix, grid)
        made += [
            numpy_helper.from_array(packed, name),
            numpy_helper.from_array(scales, f"{name}_scales"),
            numpy_helper.from_array(np.array([2], np.int64), f"{name}_last"),
            numpy_helper.from_array(np.array([0, 0, length], np.int64), f"{name}_whole"),
        ]
    return name, count, length, *grid


def _product(node: NodeProto, name: str, count: int, length: int, bits: int, block: int) -> NodeProto:
    return helper.make_node(
        "MatMulNBits",
        [node.input[0], name, f"{name}_scales"],
        [node.output[0]],
        name=node.name,
        domain=_OURS,
        K=length,
        N=count,
        bits=bits,
        block_size=block,
        accuracy_level=_LEVEL,
    )


def _table(node: NodeProto, name: str, count: int, length: int, bits: int, block: int) -> list[NodeProto]:
    """Rows that are looked up, from the very bytes that the head multiplies with."""
    found = f"{node.output[0]}_blocks"
    return [
        helper.make_node("Unsqueeze", [f"{name}_scales", f"{name}_last"], [f"{name}_columns"], name=f"{name}_columns"),
        helper.make_node(
            "GatherBlockQuantized",
            [name, node.input[1], f"{name}_columns"],
            [found],
            name=found,
            domain=_OURS,
            gather_axis=0,
            quantize_axis=2,
            block_size=block,
            bits=bits,
        ),
        helper.make_node("Reshape", [found, f"{name}_whole"], [node.output[0]], name=node.output[0]),
    ]
