"""Tokens that are guessed and verified: whatever was guessed, the text is the same, to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asked_loop import Asking
from token_models import token_model

from serving.decoding.draft_finder import DraftFinder
from serving.decoding.draft_width import DraftWidth, PieceClock
from serving.decoding.prompt_reader import PromptReader
from serving.decoding.token_loop import TokenLoop
from serving.decoding.token_worker import token_loop
from serving.engine import Engine
from serving.limits import GenerationBounds

PROMPTS = ["The quick brown", "fox " * 20, "a", "over the lazy dog, and " * 4]
SPOKEN = ("text", "tokens", "finish", "completion_tokens")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Engine, Path]:
    folder = tmp_path_factory.mktemp("draft-model")
    variant = token_model(folder, context=160)
    return Engine(folder / "variant", variant), folder / "variant"


def new_loop(engine: tuple[Engine, Path], slots: int = 4) -> TokenLoop:
    return token_loop(*engine, GenerationBounds(slots=slots))


# -- guessing ---------------------------------------------------------------------------------------------------------
def test_a_prediction_is_followed_and_found_again_behind_a_change() -> None:
    drafts = DraftFinder([10, 11, 12, 13, 14, 15, 16], [1, 2])
    assert drafts.draft(3) == [10, 11, 12]
    for token in (10, 11):
        drafts.add(token)
    assert drafts.draft(9) == [12, 13, 14, 15, 16]
    drafts.add(99)
    assert drafts.draft(9) == []  # nothing had 11, 99 before
    for token in (13, 14):
        drafts.add(token)
    assert drafts.draft(9) == [15, 16]
    for token in (15, 16):
        drafts.add(token)
    assert drafts.draft(9) == []  # its end


def test_what_was_said_before_is_expected_again() -> None:
    drafts = DraftFinder([], [5, 6, 7, 8, 5, 6])
    assert drafts.draft(2) == [7, 8]
    for token in (7, 1, 2, 3, 1, 2):
        drafts.add(token)
    assert drafts.draft(2) == [3, 1]
    drafts.add(4)
    assert drafts.draft(2) == []
    assert DraftFinder([], [5]).draft(4) == []


def test_three_tokens_in_common_say_more_than_two() -> None:
    drafts = DraftFinder([1, 2, 3, 40, 9, 2, 3, 50], [7])
    for token in (8, 1, 2, 3):
        drafts.add(token)
    assert drafts.draft(1) == [40]


def test_as_many_are_guessed_as_pay() -> None:
    clock = PieceClock()
    for tokens in (2, 3, 8, 2, 5):
        clock.learn(tokens, 0.010 + 0.001 * tokens)
    assert clock.seconds(16) == pytest.approx(0.026)
    sure, never = DraftWidth(clock), DraftWidth(clock)
    for _ in range(20):
        sure.learn(sure.most, sure.most)
        never.learn(never.most, 0)
    assert sure.most == 15 and never.most == 1
    assert (never.accepted, sure.rejected) == (0, 0) and never.rejected >= 20
    dear = PieceClock()
    for tokens in (2, 4, 16):
        dear.learn(tokens, 0.001 + 0.010 * tokens)
    assert DraftWidth(dear).most < DraftWidth(clock).most  # a token costs as much as a step


# -- verifying --------------------------------------------------------------------------------------------------------
def orders() -> Iterator[dict[str, Any]]:
    for number, prompt in enumerate(PROMPTS):
        drawn = {"temperature": 0.7, "top_p": 0.95, "seed": number} if number % 2 else {"temperature": 0.0}
        yield {"prompt": prompt, "max_tokens": 24, "ignore_end": True, "logprobs": 2, **drawn}


@pytest.fixture(scope="module")
def unaided(engine: tuple[Engine, Path]) -> list[dict[str, Any]]:
    """The texts where every guess was left out, with their tokens as ``ids``."""
    found, add = list[dict[str, Any]](), DraftFinder.add

    def note(drafts: DraftFinder, token: int) -> None:
        found[-1]["ids"].append(token)
        add(drafts, token)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DraftFinder, "draft", lambda self, most: [])
        patch.setattr(DraftFinder, "add", note)
        for order in orders():
            found.append({"ids": []})
            found[-1] |= Asking(new_loop(engine)).one(prediction="", **order)
    return found


@pytest.mark.parametrize("change", ["right", "every seventh is wrong", "begins late", "wrong"])
def test_the_text_does_not_depend_on_what_is_guessed(
    engine: tuple[Engine, Path], unaided: list[dict[str, Any]], change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DraftWidth, "most", 7)  # else it follows the clock
    for order, wanted in zip(orders(), unaided, strict=True):
        right = np.array(wanted["ids"])
        made = {
            "right": right,
            "every seventh is wrong": np.where(np.arange(len(right)) % 7 == 6, 3, right),
            "begins late": right[5:],
            "wrong": right + 1,
        }[change]
        monkeypatch.setattr(PromptReader, "predicted", lambda self, order, made=made: made.tolist())
        asking = Asking(new_loop(engine))
        told = asking.one(prediction="as above", **order)
        assert {name: told[name] for name in SPOKEN} == {name: wanted[name] for name in SPOKEN}
        if change == "right":
            assert told["accepted_tokens"] == 20 and told["rejected_tokens"] == 0 and asking.turns < 16
        if change == "every seventh is wrong":
            assert told["accepted_tokens"] >= 8 and told["rejected_tokens"] >= 4


@pytest.mark.parametrize("pause", [0, 1, 3])
def test_guessed_texts_beside_others_are_what_they_are_alone(
    engine: tuple[Engine, Path], unaided: list[dict[str, Any]], pause: int
) -> None:
    plain = [Asking(new_loop(engine)).one(**order) for order in orders()]
    asking, numbers = Asking(new_loop(engine, slots=3)), list[tuple[int, dict[str, Any]]]()
    for order, alone, guessed in zip(orders(), plain, unaided, strict=True):
        for wanted, more in ((guessed, {"prediction": "the lazy dog"}), (alone, {})):
            numbers.append((asking.ask(**order, **more), wanted))
            for _ in range(pause):
                asking.turn()
    asking.finish()
    for number, wanted in numbers:
        assert asking.told[number]["text"] == wanted["text"]
        assert asking.told[number]["tokens"] == wanted["tokens"]


def test_who_goes_leaves_the_others_their_places(engine: tuple[Engine, Path], unaided: list[dict[str, Any]]) -> None:
    asking = Asking(new_loop(engine, slots=5))
    numbers = [asking.ask(prediction="", **order) for order in orders()]
    other = asking.ask(prompt="dog", max_tokens=9, temperature=0.0, ignore_end=True)
    for _ in range(5):
        asking.turn()
    asking.loop.drop(numbers[0])
    asking.loop.drop(numbers[2])
    asking.finish()
    assert [asking.told[number]["text"] for number in (numbers[1], numbers[3])] == [
        unaided[1]["text"],
        unaided[3]["text"],
    ]
    assert (
        asking.told[other]["text"]
        == Asking(new_loop(engine)).one(prompt="dog", max_tokens=9, temperature=0.0, ignore_end=True)["text"]
    )


def test_a_text_ends_in_the_middle_of_what_was_guessed(
    engine: tuple[Engine, Path], unaided: list[dict[str, Any]]
) -> None:
    order, wanted = next(orders()), unaided[0]
    whole = wanted["text"]
    told = Asking(new_loop(engine)).one(**{**order, "stop": [whole[7:10]]}, prediction=whole)
    assert told["text"] == whole[: whole.index(whole[7:10])] and told["finish"] == "stop"
    short = Asking(new_loop(engine)).one(**{**order, "max_tokens": 7}, prediction=whole)
    assert short["tokens"] == wanted["tokens"][:7] and short["completion_tokens"] == 7


def test_a_schema_holds_for_guessed_tokens_too(engine: tuple[Engine, Path]) -> None:
    schema = '{"enum": ["abcabcabcabc", "abcabd"]}'
    order = {"prompt": "x", "json_schema": schema, "temperature": 0.0, "max_tokens": 60}
    plain = Asking(new_loop(engine)).one(**order)
    told = Asking(new_loop(engine)).one(**order, prediction='"abcabcabcabc"')
    assert told["finish"] == plain["finish"] == "stop" and told["text"] in ('"abcabcabcabc"', '"abcabd"')
    assert told["accepted_tokens"] > 0
