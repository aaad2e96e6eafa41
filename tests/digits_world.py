"""Digits in a real store, and a small teacher trained in a second: what the compression stages start from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from model_registry.store import Store
from model_registry.variant import Variant
from tasks.data.materialise import npz_bytes
from tasks.running.splits import Columns, ColumnSpec, DataRef, MetricRef, SplitRef
from tasks.running.stage import Job, WorkloadRef
from tasks.torch_models.fit import fit
from tasks.torch_models.model_structure import ModelStructure
from tasks.torch_models.torch_variant import build, save
from tasks.torch_models.training import Training
from tasks.torch_models.training_data import TrainingData
from tasks.workloads.workload import load_workload

WORKLOAD = WorkloadRef(path="tasks.workloads.digits:Digits")


@dataclass(frozen=True)
class DigitsWorld:
    """A job, its checked data and a trained teacher."""

    job: Job
    data: DataRef
    teacher: Variant


def store_splits(store: Store, splits: dict[str, Columns]) -> DataRef:
    """The splits as the data step leaves them."""
    refs = tuple(
        SplitRef(
            name=name,
            file=store.publish_bytes(npz_bytes(columns), f"{name}.npz"),
            rows=len(columns["target"]),
        )
        for name, columns in splits.items()
    )
    columns = {k: ColumnSpec(dtype=str(v.dtype), shape=v.shape[1:]) for k, v in splits["train"].items()}
    integers = np.issubdtype(splits["train"]["target"].dtype, np.integer)
    return DataRef(
        fingerprint="".join(ref.file.sha256[:16] for ref in refs[:4]),
        splits=refs,
        columns=columns,
        task="classes" if integers else "regression",
        metric=MetricRef(
            name="accuracy" if integers else "mse", better="higher" if integers else "lower", builtin=True
        ),
    )


def digits_world(store: Store, *, width: float = 0.25, epochs: int = 12) -> DigitsWorld:
    """A teacher of about 95 % on validation."""
    workload = load_workload(WORKLOAD)
    splits = workload.splits()
    scale = {"width": width}
    model = build(workload, "teacher", scale)
    fit(
        model,
        TrainingData(workload, splits["train"], splits["validation"]),
        Training(epochs=epochs, batch_size=64, learning_rate=4e-3),
        device="cpu",
    )
    teacher = save(
        store,
        model,
        workload=workload,
        structure=ModelStructure(role="teacher", scale=scale),
        sample=splits["validation"],
        name="teacher",
        stage="train",
    )
    job = Job(run_id="test-run", model="digits", store=store.uri, workload=WORKLOAD, device="cpu")
    return DigitsWorld(job, store_splits(store, splits), teacher)
