"""What a version on trial cannot answer, the old one does: no client is to notice a trial."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from model_registry.rollout_plan import RolloutPlan
from serving.engines.engine_frames import PLAIN, Answered
from serving.engines.infer_job import InferJob
from serving.exceptions import NotReady, Overloaded, ServingError
from serving.front.data_plane import DataPlane
from serving.front.http_head import RequestHead
from serving.key_ring import KeyRing
from serving.limits import RequestLimits
from serving.traffic.steering import Chosen
from serving.traffic.trial import Trial

PLAN = RolloutPlan(shadow_seconds=0, canary=(0.5,))
Does = int | ServingError | Callable[[InferJob], int]
"""Of a version that is asked: it answers with a status, or takes nothing."""


class Version:
    """A loaded version that says the same to everybody."""

    def __init__(self, version: str, does: Does) -> None:
        self.version, self._does = version, does
        self.stats = SimpleNamespace(refused=lambda status: None)

    def submit(self, job: InferJob, *, at_once: bool) -> None:
        if isinstance(self._does, ServingError):
            raise self._does
        status = self._does if isinstance(self._does, int) else self._does(job)
        job.deliver(Answered(1, self.version.encode(), -1, status, PLAIN))


def asked(tmp_path: Path, new: Does, old: Does) -> tuple[int, str, Trial]:
    """Status and body of the answer to a request that the version on trial, 2, was chosen for; the trial."""
    trial, answers = Trial(PLAN, "1", "2"), list[tuple[int, bytes]]()
    one, two = (cast(Any, Version(number, does)) for number, does in (("1", old), ("2", new)))
    rollout = SimpleNamespace(models={}, choose=lambda *_, **__: Chosen(two, "canary", trial, instead=one))
    plane = DataPlane(cast(Any, rollout), RequestLimits(), KeyRing(tmp_path / "keys.json"))
    connection = SimpleNamespace(notes=None, gone=False, answer=lambda status, body, *_: answers.append((status, body)))

    async def ask() -> None:
        head = RequestHead(b"POST", b"/v2/models/m/infer", {}, keep=True)
        plane.admit(head)
        plane.handle(cast(Any, connection), head, b"{}")
        await asyncio.sleep(0)

    asyncio.run(ask())
    ((status, body),) = answers
    return status, body.decode(), trial


def died_with(times: int) -> Callable[[InferJob], int]:
    """Engines died with the request, this often."""

    def answer(job: InferJob) -> int:
        job.tries = times
        return 503

    return answer


@pytest.mark.parametrize("status", [400, 413, 500, 501])
def test_what_it_refuses_the_old_one_answers(tmp_path: Path, status: int) -> None:
    answer, body, trial = asked(tmp_path, status, 200)
    assert (answer, body) == (200, "1")
    assert (trial.errors.trials, trial.errors.failures, trial.refused) == (1, 1, 1)
    assert trial.slow.trials == 0 and not trial.describe()["differ"]


@pytest.mark.parametrize("status", [400, 500, 501])
def test_what_both_refuse_is_the_client_s_fault(tmp_path: Path, status: int) -> None:
    answer, body, trial = asked(tmp_path, status, status)
    assert (answer, body) == (status, "1")
    assert (trial.errors.trials, trial.errors.failures) == (1, 0)


@pytest.mark.parametrize("new", [Overloaded("full"), NotReady("gone"), died_with(0), died_with(2)])
def test_what_it_has_no_engine_for_the_old_one_answers(tmp_path: Path, new: Does) -> None:
    answer, body, trial = asked(tmp_path, new, 200)
    assert (answer, body) == (200, "1")
    assert (trial.errors.trials, trial.errors.failures, trial.refused) == (1, 1, 0)


def test_where_neither_has_room_it_is_no_fault_of_the_new_one(tmp_path: Path) -> None:
    for old in (Overloaded("full"), 503):
        answer, _, trial = asked(tmp_path, Overloaded("full"), old)
        assert (answer, trial.errors.trials, trial.errors.failures) == (503, 1, 0)


def test_what_is_too_late_is_asked_nobody_else(tmp_path: Path) -> None:
    answer, body, trial = asked(tmp_path, 504, 200)
    assert (answer, body, trial.errors.trials, trial.errors.failures) == (504, "2", 1, 0)


@pytest.mark.parametrize(("new", "told"), [(400, (400, "2")), (Overloaded("full"), (503, '{"error":"away"}'))])
def test_where_the_old_one_is_away_its_word_stands(tmp_path: Path, new: Does, told: tuple[int, str]) -> None:
    assert asked(tmp_path, new, NotReady("away"))[:2] == told


def test_an_answer_is_given_once(tmp_path: Path) -> None:
    answer, body, trial = asked(tmp_path, 200, 400)
    assert (answer, body, trial.errors.trials, trial.errors.failures) == (200, "2", 1, 0)
