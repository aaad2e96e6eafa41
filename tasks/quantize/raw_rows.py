"""A split as the model's raw inputs."""

from __future__ import annotations

import io

import numpy as np

from model_registry.datatypes import NUMPY_NAMES
from model_registry.manifest import FileEntry
from model_registry.variant import TensorSpec
from tasks.quantize.calibration import Feeds
from tasks.running.child import Child
from tasks.running.errors import CalibrationError
from tasks.running.splits import TARGET, read_split


def read_rows(child: Child, inputs: tuple[TensorSpec, ...], split: str) -> tuple[Feeds, np.ndarray]:
    """All rows of a split by input name, and their targets.

    Takes what was stored for measuring, so that no torch is imported; else runs the workload's ``batch``.

    Raises:
        CalibrationError: the model takes an input that the data does not have.
    """
    stored = child.extra.get("rows" if split == "calibration" else split)
    columns = _stored(child, FileEntry.model_validate(stored)) if stored else _batched(child, split)
    targets = columns.pop(TARGET)
    wanted = {spec.name for spec in inputs}
    if not wanted <= columns.keys():
        raise CalibrationError(
            f"the ONNX file takes inputs {sorted(wanted)}, the data has {sorted(columns)}; "
            "rename the workload's inputs, or those of the file"
        )
    return {s.name: columns[s.name].astype(NUMPY_NAMES[s.datatype]) for s in inputs}, targets


def _stored(child: Child, entry: FileEntry) -> Feeds:
    with np.load(io.BytesIO(child.store.fetch_bytes(entry)), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _batched(child: Child, split: str) -> Feeds:
    import torch

    from tasks.workloads.workload import load_workload

    assert child.data is not None
    columns = {name: torch.from_numpy(values) for name, values in read_split(child.store, child.data, split).items()}
    with torch.no_grad():
        inputs, targets = load_workload(child.job.workload).batch(columns)
    return {name: value.numpy() for name, value in inputs.items()} | {TARGET: targets.numpy()}
