"""Rows that are made of others, for workloads that augment nothing: moved images, and mixtures without a label."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from taught_workloads import Blobs, taught
from test_ask import answers, asked
from test_distill import distilled, teacher_of
from torch import Tensor

from model_registry.store import Store
from tasks.running.errors import SpecError
from tasks.running.splits import Columns
from tasks.running.stage import WorkloadRef
from tasks.torch_models import views as views_module
from tasks.torch_models.made_rows import codes_among, mixable, mixed, movable, moved
from tasks.torch_models.objective import MatchOutputs, SoftTargets, StoredViews, TrainingBatch
from tasks.torch_models.views import View, ViewKind, Views, view_kind, wanted_views
from tasks.workloads.workload import Workload, load_workload


def test_a_mixture_lies_between_its_row_and_another_and_comes_from_the_generator_alone() -> None:
    rows = {"x": torch.arange(8.0).reshape(8, 1), "image": (torch.arange(8) * 30).to(torch.uint8).reshape(8, 1, 1)}
    one, same, other = (mixed(rows, torch.Generator().manual_seed(seed), {}) for seed in (0, 0, 1))
    assert torch.equal(one["x"], same["x"]) and not torch.equal(one["x"], other["x"])
    assert one["image"].dtype is torch.uint8 and (one["x"] != rows["x"]).any()
    assert one["x"].min() >= 0 and one["x"].max() <= 7
    assert torch.allclose(30 * one["x"].reshape(-1), one["image"].reshape(-1).float(), atol=0.51), "the same shares"


def test_codes_stay_those_of_the_first_row_and_gaps_do_not_spread() -> None:
    values = torch.tensor([[1.0], [float("nan")], [3.0]])
    rows = {"code": torch.tensor([4, 5, 6]), "byte": torch.tensor([[1], [2], [3]], dtype=torch.uint8), "x": values}
    for seed in range(5):
        found = mixed(rows, torch.Generator().manual_seed(seed), {})
        assert torch.equal(found["code"], rows["code"]) and torch.equal(found["byte"], rows["byte"])
        assert torch.equal(found["x"].isnan(), values.isnan())


def test_whole_numbers_in_a_table_stay_those_of_the_first_row() -> None:
    table = torch.tensor([[0.5, 2.0, 3.0], [1.5, 5.0, float("nan")], [2.5, 9.0, 4.0]])
    codes = codes_among({"features": table, "signal": torch.zeros(3, 2, 2)})
    assert [*codes] == ["features"] and codes["features"].tolist() == [False, True, True]
    assert not mixable(workload_of(Blobs()), {"features": table[:, 1:]})
    found = mixed({"features": table}, torch.Generator().manual_seed(1), codes)["features"]
    assert torch.equal(found[:, 1], table[:, 1]) and found[:, 2].isnan().tolist() == [False, True, False]
    assert not torch.equal(found[:, 0], table[:, 0])


def test_a_view_of_a_table_knows_its_codes_from_all_rows(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    rows = [f"{draw.normal():.3f},{draw.choice(['Ulm', 'Bonn', 'Kiel'])},{'ab'[n % 2]}" for n in range(700)]
    (tmp_path / "people.csv").write_text("\n".join(["size,town,target", *rows]))
    ref = WorkloadRef(path="winnow:Tabular", arguments={"source": str(tmp_path / "people.csv")})
    workload = load_workload(ref)
    train = workload.splits()["train"]
    assert view_kind(workload, train, "classes") == "mixed"
    columns = {name: torch.from_numpy(values) for name, values in train.items()}
    seen, was = View(0, 1, "mixed").inputs(workload, columns)["features"], columns["features"]
    assert torch.equal(seen[:, 1], was[:, 1]), "towns are numbers, between which there is nothing"
    assert (seen[:, 0] != was[:, 0]).float().mean() > 0.9


def test_too_large_a_split_is_not_changed_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = taught("Blobs")
    monkeypatch.setattr(views_module, "_MOST_BYTES", 1000)
    assert view_kind(blobs, blobs.splits()["train"], "classes") is None
    noisy = taught("NoisyBlobs")
    assert view_kind(noisy, noisy.splits()["train"], "classes") == "augmented", "that one was asked for"


class Coded(Blobs):
    """Points as whole numbers, between which there is nothing."""

    def splits(self) -> dict[str, dict[str, np.ndarray]]:
        made = super().splits()
        return {name: {**columns, "features": columns["features"].astype(np.int64)} for name, columns in made.items()}

    def preprocess(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"features": inputs["features"].float()}


class Filled(Blobs):
    """Rows that are filled up behind their end."""

    def padding(self) -> dict[str, float]:
        return {"features": 0.0}

    def dynamic_dims(self) -> dict[str, dict[int, str]]:
        return {"features": {1: "length"}}


def workload_of(user: Blobs) -> Workload:
    return Workload(user, taught("Blobs").ref)


def test_what_is_no_number_or_has_no_fixed_length_cannot_be_mixed() -> None:
    batch = {"features": torch.rand(2, 4)}
    assert mixable(workload_of(Blobs()), batch) and not mixable(workload_of(Filled()), batch)
    coded, blobs, noisy = workload_of(Coded()), taught("Blobs"), taught("NoisyBlobs")
    assert view_kind(coded, coded.splits()["train"], "classes") is None
    assert view_kind(blobs, blobs.splits()["train"], "classes") == "mixed"
    assert view_kind(noisy, noisy.splits()["train"], "classes") == "augmented"
    with pytest.raises(SpecError, match=r"views: 2 .*has no augment.*by themselves: write one, or leave views out"):
        wanted_views(coded, 2, 0, coded.splits()["train"], "classes")


def test_images_are_moved_where_the_answer_is_one_of_the_whole() -> None:
    images: Columns = {"image": np.zeros((3, 1, 28, 28), np.uint8), "target": np.arange(3)}
    kinds = [view_kind(taught("Blobs"), images, task) for task in ("classes", "binary", "places", "regression")]
    assert kinds == ["moved", "moved", "mixed", "mixed"]
    small: Columns = {"image": images["image"][:, :, :8, :8], "target": images["target"]}
    assert view_kind(taught("Blobs"), small, "classes") == "mixed", "a pixel is much there"
    assert not movable({"tokens": torch.zeros(2, 3, 40, 40, dtype=torch.long)})


def test_an_image_is_moved_by_whole_pixels_and_its_edge_comes_in() -> None:
    image = torch.arange(56 * 28.0).reshape(1, 1, 56, 28).repeat(200, 3, 1, 1)
    rows = {"image": image, "other": torch.arange(200)}
    found = moved(rows, torch.Generator().manual_seed(0))
    assert torch.equal(found["other"], rows["other"]) and found["image"].shape == image.shape
    padded = torch.nn.functional.pad(image[:1], (1, 1, 2, 2), mode="replicate")
    ways = {(y, x): padded[0, :, y : y + 56, x : x + 28] for y in range(5) for x in range(3)}
    seen = {next(way for way, wanted in ways.items() if torch.equal(one, wanted)) for one in found["image"]}
    assert seen == set(ways), "every way of at most two pixels down and one to the side"
    again = moved({"image": image.to(torch.uint8)}, torch.Generator().manual_seed(0))["image"]
    assert again.dtype is torch.uint8 and torch.equal(again, found["image"].to(torch.uint8))


@pytest.mark.parametrize(("kind", "labelled"), [("augmented", True), ("moved", True), ("mixed", False)])
def test_rows_as_they_are_take_turns_with_what_is_made_of_them(kind: ViewKind, labelled: bool) -> None:
    views = Views(3, 7, kind)
    first = View(7, 0) if kind == "augmented" else None
    assert [views.of_epoch(epoch) for epoch in (1, 2, 3, 4)] == [first, View(7, 1, kind), View(7, 2, kind), first]
    assert View(7, 1, kind).labelled is labelled


@pytest.mark.parametrize("view", [None, View(0, 1), View(0, 1, "moved"), View(0, 1, "mixed")])
def test_the_targets_of_a_mixture_count_for_nothing(view: View | None) -> None:
    outputs, targets = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    teacher = StoredViews((torch.randn(4, 3), torch.randn(4, 3)))
    batch = TrainingBatch({}, targets, torch.arange(4), view)

    def hard(_outputs: Tensor, _targets: Tensor) -> Tensor:
        return torch.tensor(100.0)

    for objective in (SoftTargets(hard, teacher, 2.0, 0.5), MatchOutputs(hard, teacher, 0.5)):
        assert bool(objective(outputs, batch) < 50) is (view is not None and view.kind == "mixed")


def test_a_student_learns_from_mixtures_and_its_control_from_the_rows_alone(store: Store) -> None:
    workload = taught("Blobs")
    teacher = teacher_of(store, workload)
    asked(store, workload, teacher, views=3)
    before = answers(store)
    assert len(before) == 1 + 3, "validation, the rows, two mixtures"
    plain, one, same = (distilled(store, workload, teacher, views=views) for views in (None, 3, 3))
    assert answers(store) == before
    assert one.variants[0].digest == same.variants[0].digest != plain.variants[0].digest
    assert one.variants[1].digest == plain.variants[1].digest, "nobody tells a control what a mixture is"
    assert one.values["views_of"] == "mixed" and 0 < one.values["student"]["train_metric"] <= 1
