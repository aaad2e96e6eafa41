"""What a file takes of an FPGA, as far as can be told without building anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tasks.onnx_models.circuit_codes import to_codes
from tasks.onnx_models.fpga_circuit import circuit, refuse_large
from tasks.onnx_models.graph_as_run import as_run
from tasks.onnx_models.integer_network import integer_network
from tasks.running.errors import TargetUnsupported


def look_up_tables(file: bytes, row: NDArray[Any], folder: Path, *, at_most: int) -> int | None:
    """da4ml's estimate of the look-up tables: one for each bit of an adder.

    Args:
        file: an ONNX model of one input.
        row: a row of that, [1, ...].
        folder: for files on the way.
        at_most: where there are more multiplications than this nothing is unrolled, which could take minutes: each
            takes a table at least, and their number is the answer.

    Returns:
        None where no circuit can be made of the file: it is no chain of layers of whole numbers with scales that are
        powers of two, or has more multiplications than are ever unrolled.
    """
    try:
        model = as_run(file, folder)
        network = integer_network(model)
        shape = to_codes(model, network, row).shape[1:]
        count = refuse_large(network, shape)
        return count if count > at_most else round(circuit(network, shape).cost)
    except TargetUnsupported:
        return None
