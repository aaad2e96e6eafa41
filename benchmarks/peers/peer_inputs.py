"""What every tool of the comparison gets beside the fp32 file: rows of the workload's splits as the model's raw inputs.

``python benchmarks/peers/peer_inputs.py SPEC FOLDER`` writes ``calibration.npz`` (512 rows, evenly over the classes
where there are any), ``validation.npz`` and ``test.npz``: an array per input [N, ...], and ``target``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parent.parent.parent))

from flows.spec import load_spec
from tasks.evidence.raw_arrays import MEASURED, raw_arrays
from tasks.quantize.calibration import choose_rows
from tasks.running.splits import TARGET
from tasks.workloads.workload import load_workload

CALIBRATION_ROWS = 512


def main(spec: str, folder: Path) -> None:
    workload = load_workload(load_spec(spec).workload)
    splits = workload.splits()
    folder.mkdir(parents=True, exist_ok=True)
    for split in MEASURED:
        arrays = raw_arrays(workload, splits[split])
        if split == "calibration":
            classes = arrays[TARGET].ndim == 1 and np.issubdtype(arrays[TARGET].dtype, np.integer)
            rows = choose_rows(arrays[TARGET], CALIBRATION_ROWS, stratify=classes, seed=0)
            arrays = {name: values[rows] for name, values in arrays.items()}
        np.savez(folder / f"{split}.npz", allow_pickle=False, **arrays)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
