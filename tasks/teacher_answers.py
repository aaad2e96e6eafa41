"""The teacher's outputs on a split, asked for once and kept in the store, where every training reads them.

``teacher-answers/<key>.json`` says which blob holds them. The key is the hash of all that determines them.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from pydantic import ValidationError

from model_registry.manifest import FileEntry, canonical_json, hash_bytes
from model_registry.store import CorruptObject, ObjectMissing, Store
from model_registry.variant import Record, Variant
from tasks.evidence.arrays import fetch_arrays, publish_arrays
from tasks.fit_rows import Outputs, predict, torch_device
from tasks.objective import LiveAnswers, StoredAnswers, TeacherAnswers
from tasks.source_hash import closure_hash
from tasks.splits import Columns, DataRef
from tasks.torch_variant import load
from tasks.workload import Workload

_log = logging.getLogger("winnow.teacher")


class AnswersRecord(Record):
    """Where the outputs are, and what they are of."""

    ingredients: dict[str, Any]
    file: FileEntry
    """An npz with the one array ``outputs`` [rows, ...], float32."""


def teacher_says(
    store: Store, teacher: Variant, *, workload: Workload, data: DataRef, train: Columns, device: str
) -> TeacherAnswers:
    """What the teacher says about the training split: stored, or asked anew where augmentation changes the questions.

    Args:
        train: the columns of the split ``train`` of ``data``.

    Raises:
        SpecError, WorkloadChanged: the teacher must be asked and cannot be loaded; see :func:`torch_variant.load`.
    """
    where = torch_device(device)
    if workload.augments:
        return LiveAnswers(load(store, teacher, workload=workload).to(where))
    outputs = teacher_outputs(store, teacher, workload=workload, data=data, split="train", columns=train, device=device)
    return StoredAnswers(torch.from_numpy(outputs).to(where))


def teacher_outputs(
    store: Store, teacher: Variant, *, workload: Workload, data: DataRef, split: str, columns: Columns, device: str
) -> Outputs:
    """The teacher's outputs [rows, ...] on the whole split, float32: read from the store, or computed and kept there.

    A missing or corrupt blob (the store sets it aside) is computed again.

    Args:
        columns: those of the split of this name of ``data``.

    Raises:
        SpecError, WorkloadChanged: the teacher must be asked and cannot be loaded; see :func:`torch_variant.load`.
    """
    asked = _ingredients(teacher, workload, data, split, device)
    key = f"teacher-answers/{hash_bytes(canonical_json(asked))}.json"
    found = _find(store, key)
    if found is not None:
        return found
    model = load(store, teacher, workload=workload)
    outputs = predict(model, workload=workload, columns=columns, device=device)
    file = publish_arrays(store, "outputs.npz", outputs=outputs)
    store.write_record(key, AnswersRecord(ingredients=asked, file=file).to_json())
    return outputs


def _find(store: Store, key: str) -> Outputs | None:
    data = store.read_record(key)
    if data is None:
        return None
    try:
        return fetch_arrays(store, AnswersRecord.model_validate_json(data).file)["outputs"]
    except (ValidationError, CorruptObject, ObjectMissing) as error:
        _log.warning("the teacher is asked again: %s", error)
        return None


def _ingredients(teacher: Variant, workload: Workload, data: DataRef, split: str, device: str) -> dict[str, Any]:
    """All that determines the answers. Code's hashes are part of it: preprocessing is code, not weights."""
    return {
        "teacher": teacher.digest,
        "data": data.fingerprint,
        "split": split,
        "device": torch_device(device).type,
        "workload": workload.ref.path,
        "arguments": workload.ref.arguments,
        "source": closure_hash(workload.ref.path.partition(":")[0], workload.ref.folder),
        "code": closure_hash("tasks.teacher_answers"),
        "torch": torch.__version__,
    }
