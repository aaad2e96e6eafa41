"""Steps are tried again where that can help, and never where it cannot."""

from __future__ import annotations

import inspect

import pytest
from conftest import RunningStack
from prefect import flow
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from model_registry.store import StoreDenied, StoreUnavailable
from tasks.running import policy
from tasks.running.errors import DataCheckFailed, GateFailed
from tasks.running.policy import RETRY_DELAYS, may_pass, step
from tasks.running.stage_plan import Plan, planning


class _State:
    def __init__(self, data: object) -> None:
        self.data = data


@pytest.mark.parametrize("error", [StoreUnavailable("x"), ConnectionResetError("x")])
def test_what_may_pass_is_tried_again(error: Exception) -> None:
    assert may_pass(None, None, _State(error))


@pytest.mark.parametrize("error", [StoreDenied("x"), DataCheckFailed("x"), GateFailed("x"), ValueError("x")])
def test_what_cannot_pass_is_not(error: Exception) -> None:
    assert not may_pass(None, None, _State(error))


def test_prefect_will_use_the_condition() -> None:
    # Prefect silently disables retries for anything but a plain function.
    assert inspect.isfunction(may_pass)
    assert 60 < sum(RETRY_DELAYS) * (1 + policy.RETRY_JITTER) < 180


def test_a_step_is_a_prefect_task_without_prefects_cache() -> None:
    @step("trial", module="tasks.running.policy")
    def trial(x: int) -> int:
        return x + 1

    assert trial.task.name == "trial"
    assert trial.task.persist_result is False
    assert len(trial.task.version or "") == 12
    token = planning.set(Plan())
    try:
        assert trial(1) == 2  # bare: no Prefect server is asked
        assert trial.submit(2).result() == 3
    finally:
        planning.reset(token)


def test_retries_in_a_real_flow(stack: RunningStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "RETRY_DELAYS", [0.0, 0.0])
    attempts = {"passing": 0, "final": 0}

    @step("passing", module="tasks.running.policy")
    def passing() -> str:
        attempts["passing"] += 1
        if attempts["passing"] < 3:
            raise StoreUnavailable("S3 is away")
        return "done"

    @step("final", module="tasks.running.policy")
    def final() -> str:
        attempts["final"] += 1
        raise DataCheckFailed("no second look helps")

    @flow
    def both() -> str:
        result = passing()
        with pytest.raises(DataCheckFailed):
            final()
        return result

    there = {
        PREFECT_API_URL: stack.environment["PREFECT_API_URL"],
        PREFECT_API_AUTH_STRING: stack.environment["PREFECT_API_AUTH_STRING"],
    }
    with temporary_settings(there):
        assert both() == "done"
    assert attempts == {"passing": 3, "final": 1}
