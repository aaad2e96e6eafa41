"""The teacher's outputs on a split, asked for once and kept in the store, where every training reads them.

``teacher-answers/<key>.json`` says which blob holds them. The key is the hash of all that determines them.
"""

from __future__ import annotations

import logging
from math import prod
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from model_registry.manifest import FileEntry, canonical_json, hash_bytes
from model_registry.store import CorruptObject, ObjectMissing, Store
from model_registry.variant import Record, Variant
from tasks.evidence.arrays import fetch_arrays, publish_arrays
from tasks.running.ranks import Ranks
from tasks.running.source_hash import closure_hash
from tasks.running.splits import Columns, DataRef
from tasks.torch_models.fit_rows import Outputs, Rows, answers, torch_device
from tasks.torch_models.objective import LiveAnswers, StoredAnswers, StoredViews, TeacherAnswers
from tasks.torch_models.torch_variant import load
from tasks.torch_models.views import View, Views
from tasks.workloads.workload import Workload

_MOST_BYTES = 4 << 30
"""Of the answers to a split: where an answer is a class for each pixel they may be larger than any memory. Then the
teacher is asked for each batch again."""
_log = logging.getLogger("winnow.teacher")


class AnswersRecord(Record):
    """Where the outputs are, and what they are of."""

    ingredients: dict[str, Any]
    file: FileEntry
    """An npz with the one array ``outputs`` [rows, ...], float32."""


def teacher_says(
    store: Store,
    teacher: Variant,
    *,
    workload: Workload,
    data: DataRef,
    train: Columns,
    device: str,
    views: Views | None = None,
) -> TeacherAnswers:
    """What the teacher says about the training split: stored, or asked again where augmentation changes the questions
    or where the answers are too large to keep.

    Args:
        train: the columns of the split ``train`` of ``data``.
        views: the fixed augmentations that training uses instead of fresh ones.

    Raises:
        SpecError, WorkloadChanged: the teacher must be asked and cannot be loaded; see :func:`torch_variant.load`.
    """
    where = torch_device(device)
    if (workload.augments and views is None) or too_large(teacher, train, views):
        return LiveAnswers(load(store, teacher, workload=workload).to(where))

    def outputs(view: View | None = None) -> Tensor:
        found = teacher_outputs(
            store, teacher, workload=workload, data=data, split="train", columns=train, device=device, view=view
        )
        return torch.from_numpy(found).to(where)

    if views is not None:
        return StoredViews(tuple(map(outputs, views.all())))
    return StoredAnswers(outputs())


def too_large(teacher: Variant, columns: Columns, views: Views | None) -> bool:
    """Whether the teacher's answers to all rows of these columns, in each of the views, are too large to keep."""
    shape = teacher.outputs[0].shape[1:]
    values = prod(size for size in shape if size > 0)  # of free dimensions nothing is known
    rows = len(next(iter(columns.values())))
    return 4 * values * rows * (views.count if views else 1) > _MOST_BYTES


def teacher_outputs(
    store: Store,
    teacher: Variant,
    *,
    workload: Workload,
    data: DataRef,
    split: str,
    columns: Columns,
    device: str,
    view: View | None = None,
) -> Outputs:
    """The teacher's outputs [rows, ...] on the whole split, float32: read from the store, or computed and kept there.

    A missing or corrupt blob (the store sets it aside) is computed again.

    Args:
        columns: those of the split of this name of ``data``.
        view: an augmented version of them to ask about; None: the rows as they are.

    Raises:
        SpecError, WorkloadChanged: the teacher must be asked and cannot be loaded; see :func:`torch_variant.load`.
    """
    asked = _ingredients(teacher, workload, data, split, device)
    if view is not None:
        asked["view"] = [view.seed, view.number, view.kind]
    key = f"teacher-answers/{hash_bytes(canonical_json(asked))}.json"
    found = _find(store, key)
    if Ranks.current().all(found is not None) and found is not None:
        return found
    model = load(store, teacher, workload=workload)
    rows = Rows(workload, columns, torch_device(device))
    if view is not None:
        rows.show(view)
    outputs, _ = answers(model, rows)
    file = publish_arrays(store, "outputs.npz", outputs=outputs)
    store.write_record(key, AnswersRecord(ingredients=asked, file=file).to_json())
    return outputs


def _find(store: Store, key: str) -> Outputs | None:
    data = store.read_record(key)
    if data is None:
        return None
    try:
        return fetch_arrays(store, AnswersRecord.from_json(data).file)["outputs"]
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
        "code": closure_hash("tasks.torch_models.teacher_answers"),
        "torch": torch.__version__,
    }
