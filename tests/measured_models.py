"""Small real models and data for the tests of measure, validate and report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from model_registry.store import Store
from model_registry.variant import TensorSpec, Variant
from tasks.evidence.arrays import publish_arrays
from tasks.running.splits import ColumnSpec, DataRef, MetricRef, SplitRef
from tasks.running.stage import Job, WorkloadRef

Array = NDArray[Any]
CLASSES, FEATURES = 3, 4

WORKLOAD = '''
import numpy as np
import torch
from tasks.workloads.workload import Metric


class Blobs:
    """Inputs are named differently from the columns, so `batch` has to run."""

    def __init__(self, metric: str = "") -> None:
        self.kind = metric
        if metric:
            self.metric = self._metric

    def model(self, role, **scale):
        return torch.nn.Linear(4, 3)

    def splits(self):
        raise AssertionError("splits are read from the store")

    def batch(self, columns):
        return {"x": columns["features"] * 2.0}, columns["target"]

    def _metric(self):
        return Metric("margin", "higher", lambda outputs, targets: outputs[np.arange(len(targets)), targets])
'''


def blobs(rows: int, seed: int) -> dict[str, Array]:
    """Three overlapping clouds of points: ``features`` [N, 4] FP32, ``target`` [N]."""
    generator = np.random.default_rng(seed)
    target = np.arange(rows) % CLASSES
    centres = np.eye(CLASSES, FEATURES) * 3.0
    return {
        "features": (centres[target] + generator.normal(size=(rows, FEATURES))).astype(np.float32),
        "target": target.astype(np.int64),
    }


def make_data(store: Store, *, rows: int = 300, test_rows: int = 300, **changes: Any) -> DataRef:
    """Splits of :func:`blobs` in the store."""
    counts = {"train": 10, "calibration": 10, "validation": rows, "test": test_rows}
    splits = tuple(
        SplitRef(name=name, file=publish_arrays(store, f"{name}.npz", **blobs(count, seed)), rows=count)
        for seed, (name, count) in enumerate(counts.items())
    )
    values: dict[str, Any] = {
        "fingerprint": "f" * 64,
        "splits": splits,
        "columns": {
            "features": ColumnSpec(dtype="float32", shape=(FEATURES,)),
            "target": ColumnSpec(dtype="int64", shape=()),
        },
        "task": "classes",
        "metric": MetricRef(name="accuracy", better="higher", builtin=True),
        "labels": ("red", "green", "blue"),
    }
    return DataRef(**(values | changes))


def make_job(store: Store, folder: Path, **arguments: Any) -> Job:
    """A job whose workload is written into the folder."""
    (folder / "blobs_workload.py").write_text(WORKLOAD)
    workload = WorkloadRef(path="blobs_workload:Blobs", arguments=arguments, folder=str(folder))
    return Job(run_id="test-run", model="blobs", store=store.uri, workload=workload, device="cpu")


def linear(noise: float = 0.0, seed: int = 0) -> Array:
    """Weights [4, 3] of a classifier of the blobs (inputs are doubled features); noise makes it worse."""
    weights = np.eye(FEATURES, CLASSES) * 1.5
    return (weights + noise * np.random.default_rng(seed).normal(size=weights.shape)).astype(np.float32)


def make_variant(store: Store, name: str, weights: Array, *, width: int = 0, stage: str = "export") -> Variant:
    """A linear classifier as a real ONNX file; ``width`` adds a costly pair of layers that changes no answer."""
    folder: list[onnx.TensorProto] = [numpy_helper.from_array(weights, "weights")]
    nodes = []
    source = "x"
    if width:
        grow = np.zeros((FEATURES, width), np.float32)
        grow[:, :FEATURES] = np.eye(FEATURES)
        folder += [numpy_helper.from_array(grow, "grow"), numpy_helper.from_array(grow.T.copy(), "shrink")]
        nodes = [
            helper.make_node("MatMul", ["x", "grow"], ["wide"]),
            helper.make_node("MatMul", ["wide", "shrink"], ["narrow"]),
        ]
        source = "narrow"
    nodes.append(helper.make_node("MatMul", [source, "weights"], ["logits"]))
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", FEATURES])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        initializer=folder,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    variant = Variant(
        name=name,
        stage=stage,
        format="onnx",
        files=(store.publish_bytes(model.SerializeToString(), "model.onnx"),),
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, FEATURES)),),
        outputs=(TensorSpec(name="logits", datatype="FP32", shape=(-1, CLASSES)),),
    )
    store.save_variant(variant)
    return variant
