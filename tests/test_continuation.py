"""One request for texts and the versions that answer it: who is asked, who is told, and what a trial hears of it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from model_registry.api_keys import ApiKey
from serving.engines.engine_frames import PART, Answered
from serving.exceptions import NotReady, Overloaded, TooManyRequests
from serving.front.continuation import Continuation, GenerateJob
from serving.front.openai_answer import OpenAiWriter
from serving.front.openai_request import read_completion
from serving.key_ring import Principal
from serving.limits import GenerationBounds
from serving.traffic.steering import Chosen
from serving.version_stats import VersionStats


class Version:
    """Takes jobs, and can refuse them."""

    def __init__(self, number: str) -> None:
        self.version, self.stats, self.jobs = number, VersionStats(), list[GenerateJob]()
        self.refuses: Exception | None = None

    def submit(self, job: GenerateJob, *, at_once: bool) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.jobs.append(job)


class Heard:
    """A trial that remembers what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def old_answered(self, status: int, seconds: float) -> None:
        self.told.append(("old", status))

    def new_answered(self, status: int, seconds: float) -> None:
        self.told.append(("new", status))

    def new_failed(self, status: int, old_status: int) -> None:
        self.told.append(("failed", status, old_status))


class Client:
    """A connection that keeps what it is sent."""

    def __init__(self) -> None:
        self.gone, self.notes, self.said, self.status = False, None, b"", 0

    def answer(self, status: int, body: bytes, lines: bytes = b"", content_type: bytes = b"") -> None:
        self.status, self.said = status, body

    def begin(self, content_type: bytes, lines: bytes) -> None:
        self.status = 200

    def send(self, piece: bytes) -> None:
        self.said += piece

    def finish(self) -> None:
        self.said += b"<end>"


class World:
    def __init__(self, *, trial: bool = False, stream: bool = False, **asked: Any) -> None:
        self.client, self.new, self.old, self.trial = Client(), Version("2"), Version("1"), Heard()
        body = orjson.dumps({"model": "m", "prompt": "x", "stream": stream, **asked})
        request = read_completion(body, GenerationBounds())
        told: Any = self.trial if trial else None
        chosen: Any = Chosen(self.new, "canary" if trial else "", told, instead=self.old if trial else None)  # type: ignore[arg-type]

        def refuse(connection: Any, error: Any) -> None:
            connection.answer(error.status, str(error).encode())

        self.given = (self.client, request, chosen, OpenAiWriter(request), refuse)
        self.continuation = Continuation(*self.given)  # type: ignore[arg-type]


def part(text: str, made: int, finish: str | None = None) -> Answered:
    body = {"text": text, "completion_tokens": made, "prompt_tokens": 3, "finish": finish}
    return Answered(0, orjson.dumps(body), -1, 200 if finish else PART, 0)


def failed(status: int, why: str = "broken") -> Answered:
    return Answered(0, orjson.dumps({"error": why}), -1, status, 0)


def test_several_answers_are_one_when_all_are_there() -> None:
    world = World(n=2)
    world.continuation.start()
    first, second = world.new.jobs
    second.deliver(part("b", 1, "stop"))
    first.deliver(part("a", 1))
    assert not world.client.said
    first.deliver(part("c", 2, "length"))
    told = orjson.loads(world.client.said)
    assert [(choice["text"], choice["finish_reason"]) for choice in told["choices"]] == [
        ("ac", "length"),
        ("b", "stop"),
    ]
    stats = world.new.stats
    assert (stats.tokens["prompt"], stats.tokens["made"], sum(stats.first_token_seconds.counts)) == (6, 3, 2)


def test_what_a_client_has_is_not_told_again_when_an_engine_died() -> None:
    world = World(stream=True, logprobs=0)
    world.continuation.start()
    (job,) = world.new.jobs

    def spoken(text: str, made: int, finish: str | None = None) -> Answered:
        answered = part(text, made, finish)
        token = {"text": text, "bytes": list(text.encode()), "logprob": -1.0}
        body = orjson.loads(answered.body) | {"tokens": [token] if text else []}
        return answered._replace(body=orjson.dumps(body))

    for made, text in enumerate(["The ", "dog "], 1):
        job.deliver(spoken(text, made))
    job.tries += 1  # as a lane does that gives it to another engine
    for made, text in enumerate(["The ", "dog ", "barks"], 1):
        job.deliver(spoken(text, made))
    job.deliver(spoken("", 3, "stop"))
    events = [orjson.loads(line[6:]) for line in world.client.said.split(b"\n\n") if line.startswith(b"data: {")]
    choices = [event["choices"][0] for event in events]
    assert [choice["text"] for choice in choices] == ["The ", "dog ", "barks", ""]
    assert sum(len(choice["logprobs"]["tokens"]) for choice in choices) == 3
    assert world.client.said.endswith(b"data: [DONE]\n\n<end>")


def test_tokens_are_owed_as_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("serving.key_ring.time.monotonic", lambda: now)
    who = Principal(ApiKey(id="0" * 8, name="n", digest="0" * 64, tokens=60))
    world = World()
    world.continuation = Continuation(*world.given, who)  # type: ignore[arg-type]
    world.continuation.start()
    (job,) = world.new.jobs
    job.deliver(part("a", 50))
    who.require_tokens()  # 53 of 60 a minute
    job.deliver(part("a", 60))
    with pytest.raises(TooManyRequests, match="may have 60 tokens a minute") as refused:
        who.require_tokens()
    assert refused.value.retry_after == pytest.approx(3.0)
    now += 3.1
    who.require_tokens()


def test_a_failure_is_told_in_the_stream_once_it_has_begun() -> None:
    world = World(stream=True)
    world.continuation.start()
    (job,) = world.new.jobs
    job.deliver(part("a", 1))
    job.deliver(failed(503, "the engine died twice"))
    assert b'"message":"the engine died twice"' in world.client.said and world.client.said.endswith(b"<end>")
    job.deliver(part("b", 2))  # too late
    assert world.client.said.endswith(b"<end>")


def test_who_is_gone_is_not_wanted_any_more() -> None:
    world = World(stream=True)
    world.continuation.start()
    (job,) = world.new.jobs
    assert job.wanted
    world.client.gone = True
    assert not job.wanted
    job.deliver(part("a", 1))
    assert not world.client.said


@pytest.mark.parametrize("how", ["refuses", "fails"])
def test_the_old_version_answers_what_the_one_on_trial_cannot(how: str) -> None:
    async def scenario() -> World:
        world = World(trial=True, stream=True)
        if how == "refuses":
            world.new.refuses = Overloaded("full")
        world.continuation.start()
        if how == "fails":
            world.new.jobs[0].deliver(failed(500))
            world.new.jobs[0].deliver(part("late", 1))  # nobody listens to it
        await asyncio.sleep(0)
        world.old.jobs[0].deliver(part("a", 1, "stop"))
        return world

    world = asyncio.run(scenario())
    assert b'"text":"a"' in world.client.said and b"late" not in world.client.said and b"error" not in world.client.said
    assert world.trial.told == [("failed", 503 if how == "refuses" else 500, 200)]


def test_where_neither_can_answer_the_client_hears_why() -> None:
    async def scenario() -> World:
        world = World(trial=True)
        world.new.refuses, world.old.refuses = Overloaded("full"), NotReady("gone")
        world.continuation.start()
        await asyncio.sleep(0)
        return world

    world = asyncio.run(scenario())
    assert (world.client.status, world.client.said) == (503, b"gone")
    assert world.trial.told == [("failed", 503, 503)]


def test_a_trial_hears_of_answers_and_of_the_old_version_s() -> None:
    world = World(trial=True)
    world.continuation.start()
    world.new.jobs[0].deliver(part("a", 1, "stop"))
    assert world.trial.told == [("new", 200)]
    other = World(trial=True)
    other.continuation.chosen = SimpleNamespace(version=other.old, why="", trial=other.trial, instead=None)  # type: ignore[assignment]
    other.continuation.start()
    other.old.jobs[0].deliver(part("a", 1, "stop"))
    assert other.trial.told == [("old", 200)]
