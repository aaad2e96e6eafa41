"""What a row of logits answers: one rule for training, measuring, quantizing, the gates and the endpoint's labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from onnx_models import save

from model_registry.variant import TensorSpec
from serving.engine import Engine
from tasks.qat.int8_parity import check_int8_parity
from tasks.quantize.agreement import agree
from tasks.workloads.sample_scores import accuracy_scores, top_classes

BROKEN = np.array([[np.nan, 1], [3, 1], [np.inf, 1], [-np.inf, 1], [-np.inf, -np.inf]], dtype=np.float32)
"""Logits of five rows, of which the second and the fourth answer something."""
GOOD = np.array([[0, 1], [3, 1], [3, 1], [0, 1], [2, 0]], dtype=np.float32)


def test_a_row_whose_largest_logit_is_no_number_answers_nothing() -> None:
    assert top_classes(BROKEN).tolist() == [-1, 0, -1, 1, -1]
    assert accuracy_scores(BROKEN, np.array([0, 0, 0, 1, 0])).tolist() == [0, 1, 0, 1, 0]
    assert accuracy_scores(BROKEN, np.full(5, -1)).tolist() == [0.0] * 5


def test_no_answer_agrees_with_none() -> None:
    assert agree(GOOD, BROKEN).agreement == pytest.approx(2 / 5)
    assert agree(BROKEN, BROKEN).agreement == pytest.approx(2 / 5)


def test_a_row_without_an_answer_counts_as_another_class_in_the_int8_file() -> None:
    trained = np.tile(GOOD, (400, 1))
    written = trained.copy()
    written[0] = (np.nan, 1.0)  # arg max alone would say 0; the module answers 1
    written[1] = (np.nan, 1.0)  # and here it would be right by luck
    assert check_int8_parity(trained, written, scale=0.1).flipped == 2


def test_the_endpoint_labels_exactly_the_rows_that_answer(tmp_path: Path) -> None:
    x, y = (TensorSpec(name=name, datatype="FP32", shape=(-1, 2)) for name in ("x", "y"))
    variant = save(tmp_path, [helper.make_node("Identity", ["x"], ["y"])], [x], [y], labels=["no", "yes"])
    labels = Engine(tmp_path, variant).run({"x": BROKEN}, ["label"])["label"].tolist()
    assert labels == [b"" if top < 0 else (b"no", b"yes")[top] for top in top_classes(BROKEN)]
