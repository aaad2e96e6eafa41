"""The teacher's outputs in the store: asked for once, known by all that determines them, made again when damaged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from model_registry.store import Store
from model_registry.variant import Variant
from tasks.running.splits import DataRef
from tasks.torch_models import teacher_answers
from tasks.torch_models.fit_rows import Outputs, Rows, answers, predict
from tasks.torch_models.model_structure import ModelStructure
from tasks.torch_models.objective import LiveAnswers, StoredAnswers, StoredViews, TrainingBatch
from tasks.torch_models.teacher_answers import AnswersRecord, teacher_outputs, teacher_says
from tasks.torch_models.torch_variant import build, save
from tasks.torch_models.views import View, Views
from tasks.workloads.workload import Workload

if TYPE_CHECKING:
    from taught_workloads import put_data, taught
else:  # tests/ is no package at run time
    from taught_workloads import put_data, taught


class World:
    """A workload, its data and a teacher, and how often a teacher was asked."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch, name: str = "Blobs") -> None:
        self.store, self.workload = store, taught(name)
        self.data = put_data(store, self.workload)
        self.splits = self.workload.splits()
        self.teacher = self.make(9)
        self.asked = 0

        def counted(*args: Any, **kwargs: Any) -> tuple[Outputs, Outputs]:
            self.asked += 1
            return answers(*args, **kwargs)

        monkeypatch.setattr(teacher_answers, "answers", counted)

    def make(self, seed: int) -> Variant:
        return save(
            self.store,
            build(self.workload, "teacher", {}, seed=seed),
            workload=self.workload,
            structure=ModelStructure(role="teacher"),
            sample=self.splits["validation"],
            name="teacher",
            stage="train",
        )

    def outputs(
        self,
        teacher: Variant | None = None,
        *,
        data: DataRef | None = None,
        split: str = "train",
        workload: Workload | None = None,
    ) -> Outputs:
        return teacher_outputs(
            self.store,
            teacher or self.teacher,
            workload=workload or self.workload,
            data=data or self.data,
            split=split,
            columns=self.splits[split],
            device="cpu",
        )

    def keys(self) -> list[str]:
        return self.store.list_records("teacher-answers/")

    def blob(self) -> str:
        (key,) = self.keys()
        record = AnswersRecord.model_validate_json(self.store.read_record(key) or b"")
        return self.store.blob_key(record.file.sha256)


@pytest.fixture
def world(store: Store, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(store, monkeypatch)


def test_a_teacher_is_asked_once(world: World) -> None:
    model = build(world.workload, "teacher", {}, seed=9)
    wanted = predict(model, workload=world.workload, columns=world.splits["train"], device="cpu")
    for _ in range(3):
        found = world.outputs()
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, wanted)
    assert world.asked == 1
    says = teacher_says(
        world.store,
        world.teacher,
        workload=world.workload,
        data=world.data,
        train=world.splits["train"],
        device="cpu",
    )
    assert isinstance(says, StoredAnswers) and world.asked == 1
    index = torch.tensor([5, 0])
    answer = says(TrainingBatch({}, torch.zeros(2), index))
    np.testing.assert_array_equal(answer.numpy(), wanted[[5, 0]])


def test_whatever_determines_the_answers_asks_again(world: World) -> None:
    world.outputs()
    world.outputs(world.make(10))
    world.outputs(split="validation")
    world.outputs(data=world.data.model_copy(update={"fingerprint": "other"}))
    assert (world.asked, len(world.keys())) == (4, 4)
    world.outputs(world.make(9))  # the same weights under another name
    assert world.asked == 4


@pytest.mark.parametrize("damage", ["corrupt", "missing", "record"])
def test_damage_is_made_good(world: World, damage: str) -> None:
    whole = world.outputs()
    blob = world.blob()
    if damage == "corrupt":
        world.store.put(blob, b"something else")
    elif damage == "missing":
        world.store.delete(blob)
    else:
        world.store.write_record(world.keys()[0], b"{}")
    np.testing.assert_array_equal(world.outputs(), whole)
    np.testing.assert_array_equal(world.outputs(), whole)
    assert world.asked == 2
    assert len(world.store.list_objects("quarantine/")) == (damage == "corrupt")


def test_where_augmentation_changes_the_questions_nothing_is_stored(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(store, monkeypatch, "NoisyBlobs")
    says = teacher_says(
        store, world.teacher, workload=world.workload, data=world.data, train=world.splits["train"], device="cpu"
    )
    assert isinstance(says, LiveAnswers) and not says.model.training
    assert (world.asked, world.keys()) == (0, [])


def test_the_teacher_is_asked_once_about_each_view(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(store, monkeypatch, "NoisyBlobs")

    def says(views: Views) -> StoredViews:
        found = teacher_says(
            store,
            world.teacher,
            workload=world.workload,
            data=world.data,
            train=world.splits["train"],
            device="cpu",
            views=views,
        )
        assert isinstance(found, StoredViews)
        return found

    says(Views(2, seed=0))
    assert (world.asked, len(world.keys())) == (2, 2)
    three = says(Views(3, seed=0))
    assert world.asked == 3, "more views keep the answers to the first"
    says(Views(1, seed=1))
    assert world.asked == 4
    teacher = build(world.workload, "teacher", {}, seed=9).eval()
    rows = Rows(world.workload, world.splits["train"], torch.device("cpu"))
    index = torch.tensor([5, 0, 199])
    seen = []
    for number in (0, 2, 1):
        rows.show(View(0, number))
        batch = rows(index, None)
        with torch.no_grad():
            torch.testing.assert_close(three(batch), teacher(**batch.inputs))
        seen.append(batch.inputs["features"])
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])
