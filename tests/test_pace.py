"""How fast a model trains, and which batch pays."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.torch_models import pace


class Counted:
    def __init__(self, count: int) -> None:
        self.count = count


@pytest.mark.parametrize(
    ("per_step", "per_row", "rows", "batch"),
    [
        (1.5e-3, 1e-6, 50_000, 256),  # a small dense network: a step costs the same whatever it holds
        (1e-4, 1e-3, 50_000, 64),  # a convolutional one: four times the rows take four times as long
        (5e-3, 5e-5, 50_000, 128),  # in between
        (1.5e-3, 1e-6, 3_000, 128),  # of 3 000 rows 256 a step are too few steps an epoch
        (1.5e-3, 1e-6, 300, 64),
    ],
)
def test_a_larger_batch_is_taken_where_its_step_takes_hardly_longer(
    monkeypatch: pytest.MonkeyPatch, per_step: float, per_row: float, rows: int, batch: int
) -> None:
    def seconds(model: Any, rows: Any, *, batch_size: int, objective: Any = None) -> float:
        return per_step / batch_size + per_row

    monkeypatch.setattr(pace, "row_seconds", seconds)
    model: Any = None
    shown: Any = Counted(rows)
    found = pace.training_pace(model, shown, batch_size=64)
    assert found["row_seconds"] == pytest.approx(per_step / 64 + per_row)
    assert found["larger"]["batch_size"] == batch
    assert found["larger"]["row_seconds"] == pytest.approx(per_step / batch + per_row)
