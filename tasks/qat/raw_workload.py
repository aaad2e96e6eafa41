"""The user's workload for a model that preprocesses by itself, and teachers that are asked with raw inputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from model_registry.store import Store
from model_registry.variant import Variant
from tasks.qat.int8_parity import run_onnx
from tasks.running.splits import Columns, DataRef
from tasks.torch_models.fit_rows import torch_device
from tasks.torch_models.objective import LiveAnswers, StoredAnswers, TeacherAnswers, TrainingBatch
from tasks.torch_models.teacher_answers import teacher_says, too_large
from tasks.torch_models.torch_variant import load
from tasks.workloads.workload import Inputs, Workload


class RawWorkload(Workload):
    """The same workload without preprocessing, which is inside the ONNX graph."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload.user, workload.ref)

    def preprocess(self, inputs: Inputs) -> Inputs:
        return inputs


def raw_inputs(workload: Workload, columns: Columns) -> dict[str, np.ndarray]:
    """What the ONNX file takes, for all rows of a split."""
    inputs, _ = workload.batch({name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in columns.items()})
    return {name: value.numpy() for name, value in inputs.items()}


def ask_teacher(
    store: Store, teacher: Variant, *, workload: Workload, data: DataRef, train: Columns, device: str
) -> TeacherAnswers:
    """The answers of a torch or ONNX teacher about training batches of raw inputs.

    Once for the whole split, unless augmentation changes the questions or the answers are too large to keep.
    """
    if teacher.format == "torch":
        if not workload.augments and not too_large(teacher, train, None):
            return teacher_says(store, teacher, workload=workload, data=data, train=train, device=device)
        model = load(store, teacher, workload=workload).to(torch_device(device)).eval()
        return LiveAnswers(_Preprocessed(model, workload))
    file = store.fetch_bytes(teacher.file("model.onnx"))
    if workload.augments:
        return _OnnxAnswers(file)
    outputs = run_onnx(file, raw_inputs(workload, train))
    return StoredAnswers(torch.from_numpy(outputs).to(torch_device(device)))


class _Preprocessed(nn.Module):
    """A torch teacher that takes raw inputs."""

    def __init__(self, model: nn.Module, workload: Workload) -> None:
        super().__init__()
        self.model, self.workload = model, workload

    def forward(self, **inputs: Tensor) -> Tensor:
        answer: Tensor = self.model(**self.workload.preprocess(inputs))
        return answer


@dataclass(frozen=True)
class _OnnxAnswers:
    """An ONNX teacher, asked for each batch."""

    file: bytes

    def __call__(self, batch: TrainingBatch) -> Tensor:
        inputs = {name: value.cpu().numpy() for name, value in batch.inputs.items()}
        return torch.from_numpy(run_onnx(self.file, inputs)).to(batch.targets.device)
