"""The look-up tables that a variant would take, where a budget limits them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from model_registry.store import Store
from model_registry.variant import Variant


def tables_needed(variant: Variant, inputs: Path, *, store: Store, folder: Path, at_most: int | None) -> int | None:
    """As :func:`tasks.onnx_models.fpga_size.look_up_tables` estimates them.

    Args:
        inputs: npz of rows, an array for each of the variant's inputs.
        store: has the variant's file.
        folder: for files on the way.
        at_most: see there; None: nobody asks.

    Returns:
        None where nobody asks, or the variant is nothing that an FPGA could take.
    """
    if at_most is None or len(variant.inputs) != 1:
        return None
    from tasks.onnx_models.fpga_size import look_up_tables  # da4ml need not be there otherwise

    with np.load(inputs, allow_pickle=False) as archive:
        row = archive[variant.inputs[0].name][:1]
    return look_up_tables(store.fetch_bytes(variant.file("model.onnx")), row, folder, at_most=at_most)
