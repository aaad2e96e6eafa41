"""A split as the model's raw inputs."""

from __future__ import annotations

import numpy as np

from model_registry.datatypes import NUMPY_NAMES
from model_registry.manifest import FileEntry
from model_registry.store import Store
from model_registry.variant import TensorSpec
from tasks.quantize.calibration import Feeds
from tasks.running.errors import CalibrationError
from tasks.running.mapped_arrays import fetch_columns
from tasks.running.splits import TARGET, Columns, DataRef, read_split
from tasks.running.stage import WorkloadRef


def read_rows(
    store: Store,
    inputs: tuple[TensorSpec, ...],
    split: str,
    *,
    stored: FileEntry | None,
    data: DataRef,
    workload: WorkloadRef,
) -> tuple[Feeds, np.ndarray]:
    """All rows of a split by input name, and their targets.

    Args:
        inputs: what the model takes.
        stored: the rows as they were stored for measuring, so that no torch is imported; None: the workload's
            ``batch`` is run on the split.

    Raises:
        CalibrationError: the model takes an input that the data does not have.
    """
    columns = fetch_columns(store, stored) if stored else _batched(read_split(store, data, split), workload, data)
    targets = columns.pop(TARGET)
    wanted = {spec.name for spec in inputs}
    if not wanted <= columns.keys():
        raise CalibrationError(
            f"the ONNX file takes inputs {sorted(wanted)}, the data has {sorted(columns)}; "
            "rename the workload's inputs, or those of the file"
        )
    return {s.name: columns[s.name].astype(NUMPY_NAMES[s.datatype], copy=False) for s in inputs}, targets


def _batched(columns: Columns, ref: WorkloadRef, data: DataRef) -> Feeds:
    import torch

    from tasks.workloads.workload import load_workload

    workload = load_workload(ref, data.known)
    with torch.no_grad():
        inputs, targets = workload.batch({name: torch.from_numpy(v) for name, v in columns.items()})
    return {name: value.numpy() for name, value in inputs.items()} | {TARGET: targets.numpy()}
