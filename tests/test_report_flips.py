"""Answers that changed: which samples are kept, and how they become pictures or a table."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import pytest
from measurements import run_report
from numpy.typing import NDArray
from PIL import Image

from model_registry.store import Store
from tasks.evidence.flipped import Flipped, fetch_flips, flipped_rows, publish_flips
from tasks.report.flip_pictures import Flips, contact_sheet, flips_of, show_flips
from tasks.report.pages import render_card, render_html

LABELS = ("zero", "<b>one</b>", "two|three")


def flipped(inputs: dict[str, NDArray[Any]], better: int = 1) -> Flipped:
    count = len(next(iter(inputs.values())))
    targets = np.arange(count) % 3
    wrong = np.eye(3, dtype=np.float32)[(targets + 1) % 3] * 9
    right = np.eye(3, dtype=np.float32)[targets] * 9
    up = np.arange(count) < better
    chosen, baseline = np.where(up[:, None], right, wrong), np.where(up[:, None], wrong, right)
    return Flipped(np.arange(count) * 10, up, targets, chosen, baseline, inputs)


def shown(inputs: dict[str, NDArray[Any]], better: int = 1) -> Flips:
    found = flipped(inputs, better)
    return show_flips(found, LABELS, better=better, worse=len(found.rows) - better)


def test_a_class_for_each_pixel_is_shown_beside_its_picture() -> None:
    targets = np.zeros((2, 8, 8), np.uint8)
    targets[0, :2], targets[1, 0] = 1, 255
    right = np.eye(3, dtype=np.float32)[np.minimum(targets, 2)].transpose(0, 3, 1, 2)
    inputs: dict[str, NDArray[Any]] = {"image": np.full((2, 3, 8, 8), 200, np.uint8)}
    found = Flipped(np.arange(2), np.array([True, False]), targets, right, np.roll(right, 1, axis=1), inputs)
    flips = show_flips(found, LABELS, better=1, worse=1)
    (better,) = flips.better.flips
    assert (better.truth, better.baseline, better.chosen) == ("zero, <b>one</b>", "0.0 % right", "100.0 % right")
    assert flips.better.sheet is not None and (flips.better.sheet.width, flips.better.sheet.height) == (16, 16)
    pixels = np.asarray(Image.open(io.BytesIO(flips.worse.sheet.png)).convert("RGB")) if flips.worse.sheet else None
    assert pixels is not None and (pixels[0, 0] == 200).all() and (pixels[0, 8] == 128).all()  # unlabelled is grey
    assert "true classes above" in render_html(run_report(), flips)


def test_rows_are_spread_over_the_split_or_those_that_differ_most() -> None:
    baseline, chosen = np.ones(1000), np.ones(1000)
    chosen[100:500] = 0.0
    baseline[:5] = 0.0
    up, down = flipped_rows(chosen, baseline, better="higher", count=24)
    assert up.tolist() == [0, 1, 2, 3, 4]
    assert len(down) == 24 and down[0] == 100 and down[-1] == 499 and len(set(down.tolist())) == 24
    errors = np.linspace(0, 1, 50)
    up, down = flipped_rows(errors, np.full(50, 0.5), better="lower", count=3)  # smaller errors are better
    assert up.tolist() == [0, 1, 2] and down.tolist() == [47, 48, 49]


def test_flips_are_stored_with_inputs_and_both_answers_and_read_again(store: Store) -> None:
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(2, 40, 3)).astype(np.float32)
    inputs: dict[str, NDArray[Any]] = {
        "image": rng.integers(0, 255, (40, 1, 4, 4), dtype=np.uint8),
        "extra": rng.normal(size=40),
    }
    chosen, baseline = np.ones(40), np.ones(40)
    chosen[[3, 9]], baseline[[20]] = 0.0, 0.0
    entry = publish_flips(store, scores=(chosen, baseline), outputs=(outputs[0], outputs[1]),
                          targets=np.arange(40), inputs=inputs, better="higher")  # fmt: skip
    found = fetch_flips(store, entry)
    assert found.rows.tolist() == [20, 3, 9] and found.better.tolist() == [True, False, False]
    assert (found.chosen == outputs[0][[20, 3, 9]]).all() and (found.baseline == outputs[1][[20, 3, 9]]).all()
    assert found.targets.tolist() == [20, 3, 9] and (found.inputs["image"] == inputs["image"][[20, 3, 9]]).all()
    none = publish_flips(store, scores=(chosen, chosen), outputs=(outputs[0], outputs[0]), targets=np.arange(40),
                         inputs=inputs, better="higher")  # fmt: skip
    nothing = show_flips(fetch_flips(store, none), None, better=0, worse=0)
    assert nothing.worse.flips == () and "Answers that changed" not in render_html(run_report(), nothing)


def test_a_decision_leads_to_its_flips(store: Store) -> None:
    decision = run_report().decision
    assert decision is not None
    assert flips_of(store, decision, LABELS) is None and flips_of(store, None, LABELS) is None
    right, wrong = np.ones(5), np.zeros(5)
    entry = publish_flips(store, scores=(wrong, right), outputs=(np.eye(5, 3), np.eye(5, 3)), targets=np.zeros(5, int),
                          inputs={"x": np.ones((5, 2))}, better="higher")  # fmt: skip
    found = flips_of(store, decision.model_copy(update={"flips": entry}), LABELS)
    assert found is not None and len(found.worse.flips) == 5
    assert (found.worse.total, found.better.total) == (3, 2)  # as the comparison counted


def test_few_large_inputs_are_kept(store: Store) -> None:
    large = np.zeros((60, 1 << 20), np.float32)[:, : 1 << 18]  # a megabyte each
    scores = np.zeros(60), np.ones(60)
    entry = publish_flips(store, scores=scores, outputs=(np.zeros((60, 3)), np.zeros((60, 3))), targets=np.zeros(60),
                          inputs={"x": np.ascontiguousarray(large)}, better="higher")  # fmt: skip
    assert len(fetch_flips(store, entry).rows) == 15 and entry.size < 34 << 20


@pytest.mark.parametrize(
    ("shape", "dtype", "mode"),
    [
        ((8, 8), "float32", "L"),
        ((1, 8, 8), "float32", "L"),
        ((3, 32, 32), "uint8", "RGB"),
        ((32, 24, 3), "uint8", "RGB"),
        ((4, 10, 10), "float64", "RGBA"),
        ((3, 200, 100), "float32", "RGB"),
    ],
)
def test_images_of_every_layout_become_one_sheet(shape: tuple[int, ...], dtype: str, mode: str) -> None:
    rng = np.random.default_rng(1)
    images = (rng.random((9, *shape)) * 255).astype(dtype)
    flips = shown({"x": images})
    assert flips.names == () and flips.better.sheet is not None and flips.worse.sheet is not None
    sheet = Image.open(io.BytesIO(flips.worse.sheet.png))
    assert sheet.mode == mode and flips.worse.sheet.columns == 6
    assert sheet.size == (6 * flips.worse.sheet.width, 2 * flips.worse.sheet.height)  # eight in rows of six
    assert max(flips.worse.sheet.width, flips.worse.sheet.height) <= 96
    if shape == (3, 32, 32):
        first = np.asarray(sheet)[:32, :32]
        assert (first == np.moveaxis(images[1], 0, 2)).all()  # bytes are shown as they are


def test_floats_fill_the_range_whatever_it_was() -> None:
    def bytes_of(values: NDArray[Any]) -> NDArray[Any]:
        sheet = shown({"x": values}, better=0).worse.sheet
        assert sheet is not None
        return np.asarray(Image.open(io.BytesIO(sheet.png)))

    ramp = np.linspace(0, 1, 16).reshape(1, 4, 4)
    assert bytes_of(ramp * 0.5).max() == 128  # of 0 to 1
    assert bytes_of(ramp * 16).max() == 255  # as of scikit-learn's digits
    assert bytes_of(ramp * 4 - 2).min() == 0 and bytes_of(ramp * 4 - 2).max() == 255  # normalised
    broken = ramp.copy()
    broken[0, 0, 0] = np.nan
    assert bytes_of(broken).max() == 255
    assert bytes_of(np.zeros((1, 4, 4))).max() == 0


def test_a_sheet_of_equal_pictures_is_equal() -> None:
    pictures = np.arange(2 * 5 * 4 * 1, dtype=np.uint8).reshape(2, 5, 4, 1)
    assert contact_sheet(pictures).png == contact_sheet(pictures.copy()).png
    assert (contact_sheet(pictures).width, contact_sheet(pictures).height) == (4, 5)


def test_the_page_shows_truth_and_both_answers_beside_each_picture() -> None:
    flips = shown({"image": np.zeros((4, 1, 8, 8), np.float32)}, better=1)
    html = render_html(run_report(), flips)
    assert html.count('href="data:image/png;base64,') == 2 and len(re.findall("<use ", html)) == 4
    assert set(re.findall(r'(?:src|href)="(?!http://127)([^"]{0,10})', html)) == {
        "data:image",
        "#flips-wor",
        "#flips-bet",
    }
    assert "<b>one</b>" not in html and "&lt;b&gt;one&lt;/b&gt;" in html
    assert "Worse than the baseline: 3 samples" in html and "Better than the baseline: 1 sample<" in html
    assert 'aria-label="test sample 10"' in html and "two|three (100 %)" in html
    card = render_card(run_report(), flips)
    assert "| 0 | better | zero | &lt;b>one&lt;/b> (100 %) | zero (100 %) |" in card and "two\\|three" in card


def test_what_is_no_picture_is_a_table() -> None:
    inputs = {"age": np.array([30.5, 41.0, 18.25]), "word": np.array([["<i>", "b"]] * 3), "f": np.ones((3, 40))}
    flips = shown(inputs)
    assert flips.names == ("age", "word 0", "word 1", "f 0", "f 1", "f 2", "f 3", "f 4", "…")
    assert flips.worse.flips[0].values[:3] == ("41", "<i>", "b") and flips.worse.flips[0].row == 10
    html = render_html(run_report(), flips)
    assert "<i>" not in html and "&lt;i&gt;" in html and "data:image" not in html


def test_a_regression_shows_its_numbers() -> None:
    found = Flipped(
        np.array([5]), np.array([False]), np.array([[1.5, 2.5]]), np.array([[1.0, 9.0]]), np.array([[1.5, 2.0]]),
        {"x": np.ones((1, 2))},
    )  # fmt: skip
    flip = show_flips(found, None, better=0, worse=7).worse
    assert (flip.total, flip.flips[0].truth, flip.flips[0].baseline, flip.flips[0].chosen) == (
        7,
        "1.5, 2.5",
        "1.5, 2",
        "1, 9",
    )
