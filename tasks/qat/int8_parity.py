"""The gate between training and ONNX Runtime: the int8 file must answer as the module that was trained.

Both compute on the same grids, and layers add up whole numbers in both. What differs are the last bits of the float
arithmetic between two grids (a residual Add, a mean, an activation function: other order of the same operations). Where
a value lies between two steps it is then rounded to the other one, and in a deep network such a flip causes more: of
untrained networks of 20 layers a third of the rows differed, by 0.05 output steps on average and 0.9 at most; shallow
ones agreed in every bit. So single rows may pass the bound, and only few.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from tasks.running.errors import QatParityFailed
from tasks.workloads.sample_scores import accuracy_scores, top_classes

ALLOWED = 0.001
"""Share of the rows that may lie beyond a bound; at least one row may."""
_BATCH = 64

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Int8Parity:
    """``step``: the unit of the differences, see :func:`output_step`. ``largest`` and ``mean`` difference in steps.

    ``beyond``: rows that differ by more than one step; ``flipped``: rows that answer another class, None where the
    answer is no [N, classes]. ``allowed``: the largest number of each.
    """

    rows: int
    step: float
    largest: float
    mean: float
    beyond: int
    flipped: int | None
    allowed: int


def run_onnx(file: bytes, inputs: dict[str, NDArray[np.generic]]) -> Floats:
    """The first output of the file for all rows."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    first = [session.get_outputs()[0].name]
    feeds = {v.name: inputs[v.name] for v in session.get_inputs()}
    rows = len(next(iter(feeds.values())))
    parts = [session.run(first, {n: v[i : i + _BATCH] for n, v in feeds.items()})[0] for i in range(0, rows, _BATCH)]
    answers: Floats = np.concatenate(parts)
    return answers


def output_step(answers: Floats, scale: float | None) -> float:
    """What counts as one step of the answers.

    Args:
        answers: [N, ...], the file's.
        scale: of the last quantizer, if the answers are quantized; else a step is what 8 bits would make of their
            range, 1/255 of it.
    """
    return scale if scale is not None else float(np.ptp(answers)) / 255


def check_int8_parity(trained: Floats, written: Floats, *, scale: float | None) -> Int8Parity:
    """Compare the answers of module and file to the same rows.

    Args:
        trained, written: [N, ...], of the torch module in evaluation and of the file in ONNX Runtime.
        scale: see :func:`output_step`.

    Raises:
        QatParityFailed: more rows differ than are allowed.
    """
    step = output_step(written, scale) or 1.0
    apart = np.abs(trained.astype(np.float64) - written).reshape(len(written), -1) / step
    rows = apart.max(axis=1, initial=0.0)
    flipped = None
    if written.ndim == 2 and written.shape[1] > 1:
        flipped = int(np.sum(1 - accuracy_scores(written, top_classes(trained))))
    # A whole step reached in float arithmetic is one step; NaN is beyond.
    beyond = int(np.sum(~(rows <= 1.0 + 1e-3)))
    allowed = max(1, int(len(written) * ALLOWED))
    found = Int8Parity(
        len(written),
        step,
        float(np.nan_to_num(rows.max())),
        float(np.nan_to_num(apart.mean())),
        beyond,
        flipped,
        allowed,
    )
    if beyond > allowed or (flipped or 0) > allowed:
        raise QatParityFailed(
            f"of {found.rows} validation rows the int8 file answers {beyond} by more than one step ({step:.3g}) "
            f"differently than the trained module (largest difference {found.largest:.3g} steps) and gives {flipped} "
            f"another class; {allowed} may be: on this CPU ONNX Runtime does not run the file as QuantizeLinear and "
            "DequantizeLinear say. Do without qat here, and look for saturating sums (reduce_range)",
            rows=found.rows,
            beyond=beyond,
            flipped=flipped,
        )
    return found
