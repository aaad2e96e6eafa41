"""Texts that are continued together: each as if it were alone, whoever comes, goes, or asks for what."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from asked_loop import Asking
from token_models import token_model
from tokenizers import Tokenizer

from model_registry.text_input import TOKENIZER
from serving.decoding.generation_order import GenerationOrder
from serving.decoding.grammar_mask import GrammarMask
from serving.decoding.prefix_cache import PIECE, PrefixCache, piece_names
from serving.decoding.prompt_reader import PromptReader
from serving.decoding.spoken_text import SpokenText
from serving.decoding.token_choice import TokenChoice, likeliest
from serving.decoding.token_loop import TokenLoop
from serving.decoding.token_worker import token_loop
from serving.engine import Engine
from serving.exceptions import EngineLoadError, EngineRunError, InvalidRequest
from serving.limits import GenerationBounds

GREEDY = {"temperature": 0.0, "ignore_end": True}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Engine, Path]:
    return _engine(tmp_path_factory.mktemp("token-model"))


@pytest.fixture(scope="module", params=["float32", "int8", "rows"])
def either(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest, engine: tuple[Engine, Path]
) -> tuple[Engine, Path]:
    """With keys and values of each type, and with rows in int8."""
    kind = request.param
    if kind == "float32":
        return engine
    asked = {"rows": True} if kind == "rows" else {"kv_cache": kind}
    return _engine(tmp_path_factory.mktemp(kind), **asked)


def _engine(folder: Path, **form: Any) -> tuple[Engine, Path]:
    variant = token_model(folder, context=160, **form)
    return Engine(folder / "variant", variant), folder / "variant"


@pytest.fixture
def loop(engine: tuple[Engine, Path]) -> TokenLoop:
    return token_loop(*engine, GenerationBounds(slots=4))


PROMPTS = ["The quick", "dog, and the dog does not", "fox " * 20, "a", "over the lazy dog " * 6]


def orders() -> Iterator[dict[str, Any]]:
    for number, prompt in enumerate(PROMPTS):
        drawn = {"temperature": 1.0, "top_p": 0.9, "seed": number} if number % 2 else {"temperature": 0.0}
        yield {"prompt": prompt, "max_tokens": 12, "ignore_end": True, "logprobs": 1, **drawn}


def test_a_text_is_the_same_alone_and_beside_any_others(either: tuple[Engine, Path]) -> None:
    engine = either
    alone = [Asking(token_loop(*engine, GenerationBounds(slots=4))).one(**order) for order in orders()]
    assert all(told["finish"] == "length" and told["completion_tokens"] == 12 for told in alone)
    assert len({told["text"] for told in alone}) == len(alone)
    for pause in (0, 1, 3):  # begun together, and one after the other
        asking = Asking(token_loop(*engine, GenerationBounds(slots=4)))
        numbers = list[int]()
        for order in reversed(list(orders())):
            numbers.append(asking.ask(**order))
            for _ in range(pause):
                asking.turn()
        asking.finish()
        for number, told in zip(reversed(numbers), alone, strict=True):
            assert asking.told[number]["text"] == told["text"]
            assert asking.told[number]["tokens"] == told["tokens"]  # to the bit


@pytest.mark.parametrize(
    "length", [1, 2, 3, PIECE - 1, PIECE, PIECE + 1, *(33, 34, 49, 63, 64, 65, 66, 97, 127, 128, 130)]
)
def test_prompts_of_any_length_are_continued_as_the_model_scores_them(either: tuple[Engine, Path], length: int) -> None:
    engine = either
    ids = np.random.default_rng(length).integers(1, 300, length).tolist()
    asking = Asking(token_loop(*engine))
    found, again = (asking.one(prompt=ids, max_tokens=4, logprobs=0, **GREEDY) for _ in range(2))
    assert found["tokens"] == again["tokens"]
    assert again["cached_tokens"] == (length - 1) // PIECE * PIECE
    reader = PromptReader(engine[1], engine[0].variant, engine[0].decoder)  # type: ignore[arg-type]
    said = [reader.tokenizer.token_to_id(_spelt(reader, token["text"], token["bytes"])) for token in found["tokens"]]
    scores = engine[0].run({"tokens": np.array([ids + said])})["log_probabilities"][0, length - 1 :]
    np.testing.assert_allclose([token["logprob"] for token in found["tokens"]], scores, atol=0.05)


def _spelt(reader: PromptReader, text: str, raw: list[int]) -> str:
    """The name of the token with these bytes."""
    names: dict[str, int] = reader.tokenizer.get_vocab()
    return next(name for name, number in names.items() if bytes(raw) == reader.piece(number)[1])


def test_who_goes_leaves_room_at_once_and_changes_nobody_s_text(loop: TokenLoop, engine: tuple[Engine, Path]) -> None:
    wanted = [Asking(token_loop(*engine)).one(**order)["text"] for order in orders()]
    asking = Asking(loop)
    numbers = [asking.ask(**order) for order in orders()]
    while len(loop._texts.together) < 3:
        asking.turn()
    loop.drop(numbers[1])
    assert len(loop._texts.together) == 2
    loop.drop(numbers[4])  # it has not begun
    asking.finish()
    assert [asking.told[number]["text"] for number in (numbers[0], numbers[2], numbers[3])] == [
        wanted[0],
        wanted[2],
        wanted[3],
    ]
    assert asking.told[numbers[1]]["finish"] is None and asking.told[numbers[4]]["text"] == ""


def test_texts_wait_for_a_slot_and_for_memory_and_are_refused_beyond_that(engine: tuple[Engine, Path]) -> None:
    assert engine[0].decoder is not None
    room = engine[0].decoder.token_bytes * 60
    asking = Asking(token_loop(*engine, GenerationBounds(slots=4, waiting=2, cache_bytes=room)))
    numbers = [asking.ask(prompt=[5] * 20, max_tokens=20, **GREEDY)]
    asking.turn()
    numbers += [asking.ask(prompt=[6] * 4, max_tokens=4, **GREEDY), asking.ask(prompt=[7] * 50, **GREEDY)]
    refused = asking.told[asking.ask(prompt="x", **GREEDY)]
    assert refused["status"] == 429 and refused["retry_after"] == 1.0 and "2 texts wait" in refused["error"]
    asking.turn()
    assert len(asking.loop._texts.together) == 2 and len(asking.loop._waiting) == 1  # 60 tokens hold two of them
    asking.finish()
    assert [asking.told[number]["finish"] for number in numbers] == ["length"] * 3
    assert asking.told[numbers[2]]["completion_tokens"] == 110  # what the context has room for


def test_what_ends_a_text(loop: TokenLoop) -> None:
    asking = Asking(loop)
    whole = asking.one(prompt="The quick", max_tokens=40, **GREEDY)["text"]
    stop = whole[5:8]
    told = asking.one(prompt="The quick", max_tokens=40, stop=[stop, "never said"], **GREEDY)
    assert told["text"] == whole[: whole.index(stop)] and told["finish"] == "stop"
    assert asking.one(prompt="The quick", max_tokens=0, temperature=0.0)["finish"] == "length"
    ended = asking.one(prompt="The quick", max_tokens=9, temperature=0.0, logit_bias={"0": 100.0})
    assert (ended["text"], ended["finish"], ended["completion_tokens"]) == ("", "stop", 1)


@pytest.mark.parametrize(
    ("order", "says"),
    [
        ({"prompt": [1, 300]}, "token 300 is none of the model's, which are 0 to 299"),
        ({"prompt": [1] * 150, "max_tokens": 11}, "150 tokens and 11 more are asked for; .* context for 160"),
        ({"prompt": [1] * 160}, "160 tokens and 1 more are asked for"),
        ({"messages": [{"role": "user"}], "max_tokens": 3}, None),
        ({"prompt": "x", "json_schema": '{"type": 7}'}, "response_format cannot be kept"),
        ({"prompt": "x", "logit_bias": {"300": 1}}, "logit_bias names token 300, which is none of the model's"),
    ],
)
def test_what_cannot_be_continued_is_refused(loop: TokenLoop, order: dict[str, Any], says: str | None) -> None:
    asking = Asking(loop)
    told = asking.one(**order)
    if says is None:  # the template writes what is missing as nothing
        assert told["finish"]
        return
    with pytest.raises(InvalidRequest, match=says):
        raise InvalidRequest(told["error"])
    assert told["status"] == 400 and loop.idle


def test_the_prompt_s_own_tokens_are_scored_as_by_an_inference_request(
    loop: TokenLoop, engine: tuple[Engine, Path]
) -> None:
    ids = np.random.default_rng(3).integers(1, 300, 100).tolist()
    for _ in range(2):  # what was read before is read again: every logit is wanted
        told = Asking(loop).one(prompt=ids, max_tokens=0, echo=True, logprobs=2, temperature=0.0)
        scores = engine[0].run({"tokens": np.array([ids])})["log_probabilities"][0]
        assert told["tokens"][0]["logprob"] is None and len(told["tokens"]) == 100
        np.testing.assert_allclose([token["logprob"] for token in told["tokens"][1:]], scores, atol=1e-4)
        assert all(len(token["top"]) == 2 for token in told["tokens"][1:])


def test_a_conversation_goes_through_the_template(loop: TokenLoop, engine: tuple[Engine, Path]) -> None:
    said = [{"role": "user", "content": "The dog"}, {"role": "assistant", "content": "and"}]
    asking = Asking(loop)
    order = {"max_tokens": 5, **GREEDY}
    written = "<user>The dog<assistant>and<assistant>"
    assert asking.one(messages=said, **order)["text"] == asking.one(prompt=written, **order)["text"]


def test_templates_that_refuse_and_that_cannot_be_read(tmp_path: Path) -> None:
    source = "{{ raise_exception('roles must alternate') }}"
    variant = token_model(tmp_path / "a", template=source)
    asking = Asking(token_loop(Engine(tmp_path / "a" / "variant", variant), tmp_path / "a" / "variant"))
    told = asking.one(messages=[{"role": "user", "content": "x"}])
    assert told["status"] == 400 and "does not take this conversation: roles must alternate" in told["error"]
    variant = token_model(tmp_path / "b", template="{% for %}")
    with pytest.raises(EngineLoadError, match="template for conversations cannot be read"):
        token_loop(Engine(tmp_path / "b" / "variant", variant), tmp_path / "b" / "variant")
    variant = token_model(tmp_path / "c", template=None)
    quiet = token_loop(Engine(tmp_path / "c" / "variant", variant), tmp_path / "c" / "variant")
    assert not quiet.limits.chat
    assert "no template for conversations" in Asking(quiet).one(messages=[{"role": "user", "content": "x"}])["error"]


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


def test_orders_that_cannot_be_read_are_refused_and_a_dead_end_ends_the_text(loop: TokenLoop) -> None:
    told = Asking(loop).one(prompt="x", temperature=9)
    assert told["status"] == 400 and "the order cannot be read" in told["error"]

    class Nothing:
        def compute_bitmask(self) -> bytes:
            return bytes(40)

    logits = np.zeros(300, np.float32)
    GrammarMask(Nothing(), 300, (0,))(logits)
    assert np.flatnonzero(np.isfinite(logits)).tolist() == [0]


@pytest.mark.parametrize("seed", range(4))
def test_answers_that_end_fit_their_schema_whatever_the_model_would_say(loop: TokenLoop, seed: int) -> None:
    order = {"prompt": "x", "json_schema": json.dumps(SCHEMA), "seed": seed, "temperature": 1.0, "max_tokens": 120}
    told = Asking(loop).one(**order)
    assert told["finish"] == "stop"
    jsonschema.validate(json.loads(told["text"]), SCHEMA)


def test_a_model_that_fails_fails_its_texts_and_no_others(loop: TokenLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    asking = Asking(loop)
    number = asking.ask(prompt="The", max_tokens=9, **GREEDY)
    asking.turn()
    whole = loop._session.step

    def broken(*given: Any, **more: Any) -> Any:
        raise EngineRunError("node MatMul_3")

    monkeypatch.setattr(loop._session, "step", broken)
    asking.finish()
    told = asking.told[number]
    assert told["status"] == 500 and "MatMul" not in told["error"] and loop.idle
    monkeypatch.setattr(loop._session, "step", whole)
    assert asking.one(prompt="The", max_tokens=3, **GREEDY)["finish"] == "length"


# -- choosing ---------------------------------------------------------------------------------------------------------
LOGITS = np.log(np.array([0.4, 0.3, 0.2, 0.06, 0.04], np.float32))


@pytest.mark.parametrize(
    ("order", "shares"),
    [
        ({}, [0.4, 0.3, 0.2, 0.06, 0.04]),
        ({"top_p": 0.65}, [4 / 7, 3 / 7, 0, 0, 0]),
        ({"temperature": 0.5}, (np.array([0.4, 0.3, 0.2, 0.06, 0.04]) ** 2 / 0.2952).tolist()),
        ({"logit_bias": {4: math.log(10)}}, (np.array([0.4, 0.3, 0.2, 0.06, 0.4]) / 1.36).tolist()),
    ],
)
def test_tokens_are_drawn_as_often_as_their_share(order: dict[str, Any], shares: list[float]) -> None:
    choose = TokenChoice(GenerationOrder(seed=1, **order))
    draws = 20_000
    counts = Counter(choose(LOGITS) for _ in range(draws))
    expected = np.array(shares) * draws
    chi = sum((counts[n] - wanted) ** 2 / wanted for n, wanted in enumerate(expected) if wanted)
    assert chi < 23.5  # p = 0.0001 at 4 degrees of freedom
    assert all(not counts[n] for n, wanted in enumerate(expected) if not wanted)


def test_penalties_make_what_was_said_less_likely() -> None:
    choose = TokenChoice(GenerationOrder(temperature=0, frequency_penalty=0.2, presence_penalty=0.2))
    assert [choose(LOGITS) for _ in range(5)] == [0, 1, 0, 0, 1]


def test_a_large_vocabulary_is_sorted_only_where_it_must_be() -> None:
    flat = np.zeros(5000, np.float32)
    choose = TokenChoice(GenerationOrder(seed=0, top_p=0.9))
    assert len({choose(flat) for _ in range(2000)}) > 1000  # more than are looked at first
    scores, top = likeliest(LOGITS, 2)
    assert top == [0, 1] and np.exp(scores).sum() == pytest.approx(1)


# -- text -------------------------------------------------------------------------------------------------------------
def spoken(engine: tuple[Engine, Path], text: str, stop: tuple[str, ...] = ()) -> list[str]:
    tokenizer = Tokenizer.from_file(str(engine[1] / TOKENIZER))
    saying, said = SpokenText(tokenizer, stop), list[str]()
    for token in tokenizer.encode(text).ids:
        said.append(saying.add(token))
        if saying.stopped:
            break
    return [*said, saying.rest()]


def test_half_characters_are_held_back(engine: tuple[Engine, Path]) -> None:
    said = spoken(engine, "dog \N{PARTY POPPER}\N{GREEK SMALL LETTER PI} ok")
    assert "".join(said) == "dog \N{PARTY POPPER}\N{GREEK SMALL LETTER PI} ok"
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in said)
    tokenizer = Tokenizer.from_file(str(engine[1] / TOKENIZER))
    saying = SpokenText(tokenizer, ())
    half = tokenizer.encode("\N{PARTY POPPER}").ids[:2]
    assert [saying.add(token) for token in half] == ["", ""] and saying.rest() == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("stop", "left"),
    [
        (("lazy",), "over the "),
        (("zy d", "dog"), "over the la"),
        (("dogs",), "over the lazy dog"),
        (("!",), "over the lazy dog"),
    ],
)
def test_nothing_of_a_text_that_ends_an_answer_is_said(
    engine: tuple[Engine, Path], stop: tuple[str, ...], left: str
) -> None:
    assert "".join(spoken(engine, "over the lazy dog", stop)) == left


# -- prefixes ---------------------------------------------------------------------------------------------------------
def test_prefixes_are_found_by_all_their_tokens_and_the_oldest_go_first() -> None:
    piece = np.zeros((2, 1, PIECE, 8), np.float32)
    cache = PrefixCache(3 * piece.nbytes)
    tokens = list(range(3 * PIECE))
    for name in piece_names(tokens):
        cache.keep(name, piece)
    assert len(cache.find(tokens)) == 2 and len(cache.find([*tokens, 1])) == 3
    assert len(cache.find([*tokens[: 2 * PIECE], 9, *tokens])) == 2
    assert cache.find([9, *tokens[1:]]) == []
    (other,) = piece_names([7] * PIECE)
    cache.keep(other, piece)
    assert other in cache and len(cache.find([*tokens, 1])) < 3


def test_a_variant_without_its_tokenizer_is_refused(tmp_path: Path) -> None:
    variant = token_model(tmp_path)
    bare = variant.model_copy(update={"files": tuple(f for f in variant.files if f.path != TOKENIZER)})
    make: Callable[[], object] = lambda: PromptReader(  # noqa: E731
        tmp_path / "variant",
        bare,
        Engine(tmp_path / "variant", variant).decoder,  # type: ignore[arg-type]
    )
    with pytest.raises(EngineLoadError, match=r"continues text and has no assets/tokenizer\.json"):
        make()


def test_an_empty_prompt_begins_where_texts_do(loop: TokenLoop) -> None:
    asking = Asking(loop)
    assert (
        asking.one(prompt="", max_tokens=4, **GREEDY)["text"] == asking.one(prompt=[1], max_tokens=4, **GREEDY)["text"]
    )
