"""Trees beside the network, words beside the encoder: trained on the same rows, by the same metric, in a sentence."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flows import compress as main_flow
from flows.compress import compare_with_rival
from tasks.rival import RivalSpec
from tasks.rival.bag_of_words import bag_of_words
from tasks.rival.boosted_trees import boosted_trees
from tasks.running.errors import StageTimedOut


@pytest.mark.parametrize("classes", [3, None])
def test_trees_learn_a_table_and_say_what_they_cost(classes: int | None) -> None:
    random = np.random.default_rng(0)
    table = random.normal(size=(400, 4)).astype(np.float32)
    targets = (table[:, 0] > 0).astype(np.int64) if classes else table[:, 0] * 2
    trees = boosted_trees(
        table[:300], targets[:300], table[300:], classes=classes, rounds=20, learning_rate=0.3, seed=0
    )
    if classes:
        assert trees.answers.shape == (100, 3) and not trees.answers[:, 2].any()
        assert (trees.answers.argmax(1) == targets[300:]).mean() > 0.9
    else:
        assert np.corrcoef(trees.answers, targets[300:])[0, 1] > 0.9
    assert 0 < trees.rounds <= 20 and trees.bytes > 0 and trees.row_ms > 0 and trees.seconds > 0


def test_a_bag_of_words_tells_topics_and_not_the_order_beyond_neighbours() -> None:
    random = np.random.default_rng(0)
    tokens = random.integers(10, 60, (600, 12))
    tokens[:, 9:] = 0  # filled up
    topic = random.integers(0, 2, 600)
    tokens[np.arange(600), random.integers(0, 9, 600)] = 4 + topic
    first = tokens[:, 0].copy()
    tokens[:, 0], tokens[:, 8] = np.where(topic, first, tokens[:, 8]), np.where(topic, tokens[:, 8], first)
    order = (tokens[:, 0] < tokens[:, 8]).astype(np.int64)
    for targets, least, most in ((topic, 0.9, 1.0), (order, 0.4, 0.65)):
        bag = bag_of_words(tokens[:400], targets[:400], tokens[400:], pad=0, classes=3, seed=0)
        assert bag.answers.shape == (200, 3) and not bag.answers[:, 2].any()
        assert least <= (bag.answers.argmax(1) == targets[400:]).mean() <= most
    assert bag.bytes > 0 and bag.row_ms > 0 and bag.seconds > 0
    again = bag_of_words(tokens[:400], order[:400], np.pad(tokens[400:], ((0, 0), (0, 4))), pad=0, classes=3, seed=0)
    assert np.allclose(again.answers, bag.answers, atol=1e-6), "how far a row is filled up changes nothing"


def test_a_rival_that_fails_ends_nothing_and_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*_: Any, **__: Any) -> Any:
        raise StageTimedOut("rival took longer than 60 s")

    monkeypatch.setattr(main_flow, "rival", late)
    told: list[str] = []
    journal = SimpleNamespace(failures=["rival"])
    run: Any = SimpleNamespace(job=None, journal=journal, note=told.append, warn=told.append)
    data: Any = None
    compare_with_rival(run, RivalSpec(), data)
    assert told == ["there is no rival to compare with: StageTimedOut: rival took longer than 60 s"]
    assert journal.failures == [], "the run did not fail"
