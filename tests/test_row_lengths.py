"""Batches that are cut behind their longest row: which rows they hold, and that no answer changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tasks.running.errors import WorkloadError
from tasks.running.splits import TARGET, Columns
from tasks.running.stage import WorkloadRef
from tasks.torch_models.fit import _steps, fit
from tasks.torch_models.fit_rows import Rows, predict
from tasks.torch_models.pace import row_seconds
from tasks.torch_models.training import Training
from tasks.torch_models.training_data import TrainingData
from tasks.workloads.text_encoder import EncoderShape, TextEncoder
from tasks.workloads.workload import Workload

LONGEST, VOCABULARY = 64, 40
CPU = torch.device("cpu")


class Told:
    """Texts of three classes: which of three tokens is in it."""

    seen: set[int]
    """Lengths that the model was called with."""

    def __init__(self, *, filled: bool = True) -> None:
        self.seen = set()
        self.filled = filled

    def dynamic_dims(self) -> dict[str, dict[int, str]]:
        return {"tokens": {1: "length"}}

    def padding(self) -> dict[str, int]:
        return {"tokens": 0} if self.filled else {}

    def preprocess(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        self.seen.add(inputs["tokens"].shape[1])
        return inputs


def _texts(count: int = 400) -> Columns:
    draw = np.random.default_rng(0)
    tokens, target = np.zeros((count, LONGEST), np.int64), draw.integers(0, 3, count)
    for row, label in enumerate(target):
        length = LONGEST if row == 8 else min(LONGEST, 3 + int(draw.exponential(9)))
        tokens[row, :length] = draw.integers(5, VOCABULARY, length)
        tokens[row, draw.integers(0, length)] = 1 + label
    tokens[7] = 0  # nothing but filling
    return {"tokens": tokens, TARGET: target}


FOUR_HUNDRED = _texts()


def workload(user: object) -> Workload:
    return Workload(user, WorkloadRef(path="m:C"))


def encoder() -> nn.Module:
    shape: dict[str, Any] = {"features": 16, "layers": 2, "heads": 2, "hidden": 32, "places": LONGEST}
    torch.manual_seed(0)
    return TextEncoder(EncoderShape(vocabulary=VOCABULARY, pad=0, separator=None, **shape), 3)


def test_batches_hold_every_row_once_and_rows_of_about_one_length() -> None:
    rows = Rows(workload(Told()), FOUR_HUNDRED, CPU)
    batches = rows.lengths.batches(torch.arange(rows.count), 25, torch.Generator().manual_seed(3))
    assert sorted(torch.cat(batches).tolist()) == list(range(rows.count))
    assert {len(batch) for batch in batches} == {16}
    widths = [rows(batch, None, cut=True).inputs["tokens"].shape[1] for batch in batches]
    assert np.mean(widths) < 0.5 * LONGEST
    assert max(widths) == LONGEST
    assert widths != sorted(widths), "they come in any order"
    again = rows.lengths.batches(torch.arange(rows.count), 25, torch.Generator().manual_seed(3))
    assert all(torch.equal(one, two) for one, two in zip(batches, again, strict=True))


@given(count=st.integers(2, 400), batch_size=st.integers(2, 64), filled=st.booleans())
@settings(max_examples=50, deadline=None)
def test_every_row_is_seen_once_and_no_batch_is_tiny(count: int, batch_size: int, filled: bool) -> None:
    columns = {name: values[:count] for name, values in FOUR_HUNDRED.items()}
    rows = Rows(workload(Told(filled=filled)), columns, CPU)
    batches = rows.lengths.batches(torch.arange(count), _steps(count, batch_size), torch.Generator().manual_seed(0))
    assert sorted(torch.cat(batches).tolist()) == list(range(count))
    sizes = {len(batch) for batch in batches}
    assert 2 <= min(sizes) <= max(sizes) <= max(batch_size, 3)
    assert max(sizes) - min(sizes) <= 1


def test_what_is_cut_away_is_filling_alone() -> None:
    columns = FOUR_HUNDRED
    rows = Rows(workload(Told()), columns, CPU)
    for index in torch.split(rows.lengths.order(rows.count), 32):
        kept = rows(index, None, cut=True).inputs["tokens"]
        whole = torch.from_numpy(columns["tokens"])[index]
        assert torch.equal(kept, whole[:, : kept.shape[1]])
        assert not whole[:, kept.shape[1] :].any()
    assert rows(torch.tensor([7]), None, cut=True).inputs["tokens"].shape[1] == 8
    assert rows(torch.tensor([7]), None).inputs["tokens"].shape[1] == LONGEST


def test_answers_stay_in_order_and_are_those_of_whole_rows() -> None:
    columns, model, told = FOUR_HUNDRED, encoder(), Told()
    found = predict(model, workload=workload(told), columns=columns, device="cpu")
    whole = predict(model, workload=workload(Told(filled=False)), columns=columns, device="cpu")
    np.testing.assert_allclose(found, whole, atol=1e-5)
    assert min(told.seen) <= 16
    assert np.abs(found - found[0]).max() > 1e-3, "answers differ, so that their order can be told"


def test_a_training_on_cut_batches_learns_what_one_on_whole_rows_does() -> None:
    columns = FOUR_HUNDRED
    training = Training(epochs=6, batch_size=16, learning_rate=0.01)
    fitted = {}
    for filled in (True, False):
        told = Told(filled=filled)
        data = TrainingData(workload(told), columns, columns)
        fitted[filled] = fit(encoder(), data, training, seed=1, device="cpu").val_metric
        assert (min(told.seen) < LONGEST) == filled
    assert min(fitted.values()) > 0.9


def test_a_view_is_cut_by_what_it_shows() -> None:
    class Lengthened(Told):
        def augment(self, inputs: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
            return {"tokens": torch.where(inputs["tokens"] == 0, 9, inputs["tokens"])}

    rows = Rows(workload(Lengthened()), FOUR_HUNDRED, CPU)
    assert rows(torch.arange(4), torch.Generator(), cut=True).inputs["tokens"].shape[1] == LONGEST


def test_signals_are_cut_along_their_own_dimension() -> None:
    class Signals:
        def dynamic_dims(self) -> dict[str, dict[int, str]]:
            return {"wave": {2: "time"}}

        def padding(self) -> dict[str, float]:
            return {"wave": -1.0}

    wave = np.full((6, 2, 40), -1.0, np.float32)
    wave[:, 1, :10] = 0.5
    wave[2, 0, 19] = 0.0
    rows = Rows(workload(Signals()), {"wave": wave, TARGET: np.zeros(6, np.int64)}, CPU)
    assert rows(torch.tensor([0, 1]), None, cut=True).inputs["wave"].shape == (2, 2, 16)
    assert rows(torch.tensor([1, 2]), None, cut=True).inputs["wave"].shape == (2, 2, 24)
    assert rows.lengths.order(6).tolist() == [0, 1, 3, 4, 5, 2]


def test_a_training_step_is_timed_with_rows_of_the_mean_length() -> None:
    told = Told()
    rows = Rows(workload(told), FOUR_HUNDRED, CPU)
    usual = rows.lengths.usual(rows.count, 32)
    lengths = (rows.columns["tokens"] != 0).sum(1).double()
    assert abs(float(lengths[usual].mean() - lengths.mean())) < 3
    told.seen.clear()
    assert row_seconds(encoder(), rows, batch_size=32) > 0
    assert sorted(told.seen) == [16, LONGEST], "a sample as wide as the model is measured, and what is timed"


def test_an_input_that_is_filled_up_has_one_dimension_that_varies() -> None:
    class Wrong(Told):
        def dynamic_dims(self) -> dict[str, dict[int, str]]:
            return {}

    with pytest.raises(WorkloadError, match=r"padding\(\) names input 'tokens'"):
        Rows(workload(Wrong()), FOUR_HUNDRED, CPU).lengths.order(2)
