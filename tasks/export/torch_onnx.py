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
    """Have torch.onnx keep the list of operators; without effect where torch asks for it in another way."""
    source = getattr(_registration, "onnxscript_apis", None)
    if source is not None and hasattr(source, "get_torchlib_ops"):
        source.get_torchlib_ops = functools.cache(source.get_torchlib_ops)
