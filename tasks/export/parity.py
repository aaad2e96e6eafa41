"""The gate between torch and ONNX Runtime: the exported file must answer as the model does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from tasks.export.raw_inputs import Inputs, RawInputs
from tasks.running.errors import ParityFailed

BATCHES = (1, 2, 7)


@dataclass(frozen=True)
class Parity:
    """Largest absolute difference between torch and ONNX Runtime for one batch size, and what was allowed."""

    batch: int
    difference: float
    allowed: float


def check_parity(
    module: RawInputs, file: bytes, inputs: Inputs, *, tolerance: float, batches: tuple[int, ...] = BATCHES
) -> tuple[Parity, ...]:
    """Compare answers on real rows at several batch sizes.

    Args:
        inputs: rows by name, at least one; repeated where a batch needs more.
        tolerance: allowed absolute difference, for outputs up to 1; larger outputs are allowed in proportion.

    Raises:
        ParityFailed: names the batch, the difference and what was allowed.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    module.eval()
    found = []
    for batch in batches:
        rows = torch.arange(batch) % len(next(iter(inputs.values())))
        columns = {name: inputs[name][rows] for name in module.names}
        with torch.no_grad():
            wanted: NDArray[np.floating] = module(*columns.values()).cpu().numpy()
        (answer,) = session.run(None, {name: column.cpu().numpy() for name, column in columns.items()})
        if answer.shape != wanted.shape:
            raise ParityFailed(
                f"at batch {batch} the exported file answers shape {answer.shape}, the model {wanted.shape}; a size of "
                "the batch is fixed in the forward pass",
                batch=batch,
            )
        difference = float(np.abs(answer - wanted).max(initial=0.0))
        allowed = tolerance * max(1.0, float(np.abs(wanted).max(initial=0.0)))
        if not difference <= allowed:  # so that NaN fails
            raise ParityFailed(
                f"at batch {batch} the exported file differs from the model by {difference:.3g}, allowed is "
                f"{allowed:.3g}; make the forward pass deterministic in evaluation, or raise export.tolerance "
                f"({tolerance:g}) if the model is that sensitive to rounding",
                batch=batch,
                difference=repr(difference),
                allowed=allowed,
            )
        found.append(Parity(batch, difference, allowed))
    return tuple(found)
