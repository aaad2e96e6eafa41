"""torch.onnx, whose table of operators is made once for all models that a process exports.

torch 2.11 reads and parses the source of some 500 operators in every call of ``torch.onnx.export``, which is a third of
the time that a small model takes; the table depends on nothing but the installed onnxscript.
"""

from __future__ import annotations

import functools

import onnxscript.function_libs.torch_lib.ops  # noqa: F401 - the table's operators, imported late otherwise
from torch.export import _trace  # noqa: F401 - likewise
from torch.onnx._internal.exporter import _compat, _registration  # noqa: F401 - likewise


@functools.cache
def share_operator_table() -> None:
    """Have torch.onnx keep its table of operators; without effect where torch makes it in another way."""
    table = getattr(_registration, "ONNXRegistry", None)
    if table is not None and hasattr(table, "from_torchlib"):
        table.from_torchlib = staticmethod(functools.cache(table.from_torchlib))
