"""Sets of variants and roll-outs on a real endpoint and a real store: chosen, degraded, tried, stopped, gone back."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import Server
from endpoint_process import ASK, TOKEN, long
from endpoint_process import Endpoint as Process
from endpoint_process import endpoint as endpoint_process
from onnx_models import publish, slow
from patience import wait_for
from release_world import World, new_name
from releasing_endpoint import LONG, QUICK, protocol, releasing_endpoint, three_versions, traffic

import winnow
from flows.commands.stack_releases import settle_releases
from model_registry.api_keys import KeyFile
from model_registry.endpoint_client import Endpoint, EndpointError
from model_registry.endpoint_rollout import EndpointRollout
from model_registry.ledger import Ledger
from model_registry.release_steps import ReleaseSteps
from model_registry.store import Store
from model_registry.variant import RuntimeSpec
from model_registry.variant_set import SetMember, VariantSets
from tasks.running.errors import EndpointUnhealthy


@pytest.fixture(scope="module")
def process(s3: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with releasing_endpoint(s3, tmp_path_factory.mktemp("endpoint"), "sets-and-rollouts") as running:
        yield running


@pytest.fixture
def world(process: Process, tmp_path: Path) -> Iterator[World]:
    with three_versions(tmp_path) as made:
        yield made


def set_of(world: World, *members: tuple[int, float, float]) -> None:
    """Say that these versions were registered together: number, accuracy, milliseconds."""
    VariantSets(world.store).write(
        world.model,
        tuple(
            SetMember(
                version=number,
                digest=world.digest(number),
                name=f"variant-{number}",
                metric="accuracy",
                better="higher",
                value=accuracy,
                p50_ms=milliseconds,
                bytes=1000,
            )
            for number, accuracy, milliseconds in members
        ),
    )


# -- sets -----------------------------------------------------------------------------------------------------------
def test_a_release_brings_its_whole_set_and_a_restart_brings_it_again(
    process: Process, world: World, tmp_path: Path
) -> None:
    set_of(world, (1, 0.97, 4.0), (2, 0.96, 0.001), (3, 0.95, 0.0005))
    done = protocol(world)
    done.release(1, world.digest(1))
    assert (world.loaded(), done.warnings) == ([1, 2, 3], [])

    def ask(url: str, **headers: str) -> tuple[int, str, str]:
        found = httpx.post(f"{url}/v2/models/{world.model}/infer", json=ASK, headers=headers, verify=False)
        return found.status_code, found.json().get("model_version", found.text), found.headers.get("winnow-choice", "")

    def all_of_it(url: str) -> None:
        assert ask(url) == (200, "1", "")
        assert ask(url, **{"winnow-variant": "variant-2"}) == (200, "2", "asked")
        assert ask(url, **{"winnow-variant": world.digest(3)[:12]}) == (200, "3", "asked")
        assert ask(url, **{"winnow-min-accuracy": "0.965"}) == (200, "1", "asked")
        status, text, _ = ask(url, **{"winnow-min-accuracy": "0.98"})
        assert status == 400 and "no variant reaches accuracy 0.98" in text
        status, text, _ = ask(url, **{"winnow-max-latency-ms": "soon"})
        assert status == 400 and "max_latency_ms" in text
        found = httpx.get(f"{url}/v2/models/{world.model}/variants", verify=False).json()
        assert [(v["version"], v["value"]) for v in found["variants"]] == [("1", 0.97), ("3", 0.95), ("2", 0.96)]

    def all_there(fresh: Process) -> bool:
        found = fresh.get(f"/v2/models/{world.model}/variants").json()
        return len(found["variants"]) == 3

    all_of_it(process.url)
    with endpoint_process(tmp_path / "again") as fresh:
        wait_for(lambda: all_there(fresh))
        all_of_it(fresh.url)
    set_of(world, (1, 0.97, 4.0), (2, 0.96, 0.001))
    assert protocol(world).reconcile().action == "nothing"
    assert world.loaded() == [1, 2], "what left the set leaves the endpoint"


def test_parameters_in_the_body_choose_as_headers_do(process: Process, world: World) -> None:
    set_of(world, (1, 0.97, 4.0), (2, 0.96, 0.001), (3, 0.95, 0.0005))
    protocol(world).release(1, world.digest(1))

    def ask(version: str = "", **parameters: object) -> tuple[int, str]:
        found = process.infer(world.model, {**ASK, "parameters": parameters}, version)
        return found.status_code, found.json().get("model_version", found.text)

    assert ask(variant="variant-3") == (200, "3")
    assert ask(min_accuracy=0.965) == (200, "1")
    assert ask(min_accuracy=0.96, max_latency_ms=1000, timeout=10_000_000) == (200, "1")
    assert ask("2", min_accuracy=0.95) == (200, "2")
    status, text = ask("2", min_accuracy=0.965)
    assert status == 400 and "the best that fits the request, version 2, has 0.96" in text
    assert ask(variant=7)[0] == 400
    stats = process.get(f"/v2/models/{world.model}/stats").json()["model_stats"]
    counts = {one["version"]: one["inference_stats"]["success"]["count"] for one in stats}
    assert sum(one["inference_stats"]["fail"]["count"] for one in stats) == 2
    assert sum(counts.values()) - 9 == 4, "the nine recorded predictions of the release, and an answer counts once"
    with winnow.Client(process.url) as client:
        row = np.zeros(2, dtype=np.float32)
        assert client.predict(world.model, row, variant="variant-3")["y"].tolist() == [7, 7]
        assert client.predict(world.model, row, min_accuracy=0.965)["y"].tolist() == [5, 5]
        with pytest.raises(EndpointError, match="no variant reaches"):
            client.predict(world.model, row, min_accuracy=0.99)


def test_one_version_alone_is_a_set_of_what_was_measured(process: Process, world: World) -> None:
    set_of(world, (1, 0.97, 4.0))
    protocol(world).release(1, world.digest(1))
    path = f"{process.url}/v2/models/{world.model}/infer"
    assert httpx.post(path, json=ASK, headers={"winnow-min-accuracy": "0.9"}, verify=False).status_code == 200
    protocol(world).release(3, world.digest(3))  # of which nothing was measured
    found = httpx.post(path, json=ASK, headers={"winnow-min-accuracy": "0.9"}, verify=False)
    assert found.status_code == 400 and "nothing is known of the accuracy" in found.text


def test_what_of_a_set_answers_otherwise_is_left_out(process: Process, world: World) -> None:
    world.register(4, number=9, recorded=8, row=False)
    set_of(world, (1, 0.97, 4.0), (4, 0.99, 0.1))
    done = protocol(world)
    done.release(1, world.digest(1))
    assert "version 4, of the champion's set, is not served" in done.warnings[0]
    found = httpx.get(f"{process.url}/v2/models/{world.model}/variants", verify=False).json()
    assert [one["version"] for one in found["variants"]] == ["1"]


def test_under_load_a_cheaper_variant_answers_and_not_those_who_want_the_exact_one(
    s3: Server, process: Process, tmp_path: Path
) -> None:
    """The model takes as long as it is told to: the queue is real, and so is the way back."""
    store, model = Store.from_environment(), new_name()
    home = tmp_path / "home"
    keys = KeyFile(home / "keys.json")
    _, anybody = keys.add("anybody")
    _, exact = keys.add("exact", exact=True)
    dear = publish(store, tmp_path / "dear", slow(tmp_path / "dear"))
    cheap_form = dear.model_dump() | {"digest": "", "runtime": RuntimeSpec(arena=False)}
    cheap = publish(store, tmp_path / "dear", type(dear).model_validate(cheap_form))
    with endpoint_process(home, wait=False) as running:
        running.deploy(model, "1", dear.digest)
        loaded = running.admin("PUT", f"/admin/models/{model}/versions/2", {"digest": cheap.digest, "spare": True})
        assert loaded.status_code == 200 and len(running.version(model, "2")["pids"]) == 1
        members = [
            {"version": n, "digest": v.digest, "name": f"v{n}", "metric": "accuracy", "better": "higher"}
            | {"value": 1.0 - n / 100, "p50_ms": 10.0 / n, "bytes": 1}
            for n, v in ((1, dear), (2, cheap))
        ]
        assert running.admin("PUT", f"/admin/models/{model}/set", {"members": members}).status_code == 200

        def ask(key: str, steps: int) -> tuple[int, str, str]:
            with httpx.Client(verify=False, timeout=60) as client:
                headers = {"authorization": f"Bearer {key}"}
                found = client.post(f"{running.url}/v2/models/{model}/infer", json=long(steps), headers=headers)
            return found.status_code, found.json()["model_version"], found.headers.get("winnow-choice", "")

        assert ask(anybody, 1) == (200, "1", "")
        with ThreadPoolExecutor(24) as pool:
            first = list(pool.map(lambda _: ask(anybody, 3000), range(24)))
            those = pool.map(lambda key: ask(key, 3000), [anybody, exact] * 12)
            found = list(zip([anybody, exact] * 12, those, strict=True))
        assert {status for status, _, _ in first} == {200}
        degraded = [answer for key, answer in found if key == anybody]
        assert ("200", "2", "degraded") in {(str(s), v, c) for s, v, c in [*first, *degraded]}
        assert {answer[1] for key, answer in found if key == exact} == {"1"}

        def described() -> dict[str, Any]:
            found: dict[str, Any]
            (found,) = (m for m in running.admin("GET", "/admin/models").json()["models"] if m["model"] == model)
            return found

        assert described()["set"][1]["degraded_requests"] > 0
        assert f'winnow_degraded_requests_total{{model="{model}",version="2"}}' in running.admin("GET", "/metrics").text
        wait_for(lambda: described()["degraded"] == 0)
        assert ask(anybody, 1) == (200, "1", "")


# -- roll-outs ------------------------------------------------------------------------------------------------------
def test_a_version_that_answers_alike_takes_over_step_by_step(process: Process, world: World) -> None:
    protocol(world).release(1, world.digest(1))
    with traffic(process, world.model) as answers:
        done = protocol(world).release(2, world.digest(2), plan=QUICK)
    assert (done.state, world.champion()) == ("committed", 2)
    assert {status for status, _ in answers} == {200}
    versions = [version for _, version in answers]
    first = versions.index("2")
    mixed = Counter(versions[first : len(versions) - versions[::-1].index("1")])
    assert first > 20 and 0.3 < mixed["2"] / mixed.total() < 0.7, "nothing in the shadow, then half of all"
    steps = ReleaseSteps(world.store).of(world.model, done.seq)
    reached = ["intent", "loaded", "checked", "shadow 100 %", "canary 50 %", "tried", "swapped", "committed", "shown"]
    assert [step.what for step in steps] == reached
    assert "0 of" in steps[4].detail and "answers" in steps[5].detail


def test_a_version_that_answers_otherwise_never_gets_a_request(process: Process, world: World) -> None:
    protocol(world).release(1, world.digest(1))
    with (
        traffic(process, world.model) as answers,
        pytest.raises(EndpointUnhealthy, match=r"stopped in step 'shadow 100 %'.*rows were answered differently"),
    ):
        protocol(world).release(3, world.digest(3), plan=QUICK.model_copy(update={"shadow_seconds": 60.0}))
    assert set(answers) == {(200, "1")}
    assert (world.champion(), world.loaded()) == (1, [1])
    last = Ledger(world.store).history(world.model)[-1]
    assert last.state == "aborted" and "rows were answered differently" in last.reason
    assert ReleaseSteps(world.store).of(world.model, last.seq)[-1].what == "failed"


def test_one_of_the_set_that_was_stopped_stays_in_the_set(process: Process, world: World) -> None:
    set_of(world, (1, 0.97, 4.0), (3, 0.95, 0.1))
    protocol(world).release(1, world.digest(1))
    with traffic(process, world.model) as answers, pytest.raises(EndpointUnhealthy, match="answered differently"):
        protocol(world).release(3, world.digest(3), plan=QUICK.model_copy(update={"shadow_seconds": 60.0}))
    assert set(answers) == {(200, "1")}
    assert (world.champion(), world.loaded()) == (1, [1, 3])
    found = process.infer(world.model, {**ASK, "parameters": {"variant": "variant-3"}})
    assert found.json()["model_version"] == "3"


def test_a_person_can_end_it_either_way(process: Process, world: World) -> None:
    protocol(world).release(1, world.digest(1))
    rollout = EndpointRollout(world.endpoint, world.model)

    def say(action: str) -> None:
        wait_for(lambda: (state := rollout.state()) is not None and state.going)
        paused = rollout.act("pause")
        try:
            assert paused is not None and paused.state == "paused" and paused.going
            said = "\n".join(settle_releases(world.store, patience=0.1))
            assert f"{world.model}: version 2 is being rolled out" in said
        finally:  # else it would wait for ever
            rollout.act(action)  # type: ignore[arg-type]

    with ThreadPoolExecutor(1) as pool:
        person = pool.submit(say, "abort")
        with pytest.raises(EndpointUnhealthy, match="ended by hand"):
            protocol(world).release(2, world.digest(2), plan=LONG)
        person.result()
        assert (world.champion(), world.loaded(), rollout.state()) == (1, [1], None)
        person = pool.submit(say, "promote")
        protocol(world).release(2, world.digest(2), plan=LONG)
        person.result()
    assert (world.champion(), world.loaded()) == (2, [2])


def test_whoever_rolls_out_dies_and_the_old_version_has_everything_again(process: Process, world: World) -> None:
    protocol(world).release(1, world.digest(1))
    code = f"""
from model_registry.endpoint_client import Endpoint
from model_registry.rollout_plan import RolloutPlan
from model_registry.store import Store
from tasks.release.ledger_protocol import ReleaseProtocol
plan = RolloutPlan.model_validate_json({LONG.model_dump_json()!r})
with Endpoint.from_environment() as endpoint:
    ReleaseProtocol(Store.from_environment(), endpoint, None, {world.model!r}).release(
        2, {world.digest(2)!r}, plan=plan)
"""
    rollout = EndpointRollout(world.endpoint, world.model)
    owner = subprocess.Popen([sys.executable, "-c", code])
    with traffic(process, world.model) as answers:
        wait_for(lambda: ("200", "2") in {(str(status), version) for status, version in answers})
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        wait_for(lambda: (state := rollout.state()) is not None and state.state == "abandoned")
        after = len(answers)
        wait_for(lambda: len(answers) > after + 50)
        assert {version for _, version in answers[after + 5 :]} == {"1"}
        found = protocol(world).reconcile()
    assert found.action == "aborted" and (world.champion(), world.loaded()) == (1, [1])
    assert {status for status, _ in answers} == {200}


def test_an_endpoint_that_is_started_again_in_the_middle_goes_on(world: World, tmp_path: Path) -> None:
    """The data plane and the admin listener keep their ports, as they do in life."""
    home = tmp_path / "own"
    rollout_of = QUICK.model_copy(update={"shadow_seconds": 0.0, "step_seconds": 2.0, "min_requests": 0})
    with endpoint_process(home) as first:
        port, admin_port = (url.rpartition(":")[2] for url in (first.url, first.admin_url))
        with Endpoint(first.url, first.admin_url, TOKEN) as endpoint, ThreadPoolExecutor(1) as pool:
            world.endpoint = endpoint
            protocol(world).release(1, world.digest(1))
            releasing = pool.submit(protocol(world).release, 2, world.digest(2), plan=rollout_of)
            rollout = EndpointRollout(endpoint, world.model)
            wait_for(lambda: (state := rollout.state()) is not None and state.going)
            first.terminate()
            with endpoint_process(home, WINNOW_ENDPOINT_PORT=port, WINNOW_ADMIN_PORT=admin_port):
                done = releasing.result(timeout=60)
                assert (done.state, world.champion(), world.loaded()) == ("committed", 2, [2])
    steps = [step.what for step in ReleaseSteps(world.store).of(world.model, done.seq)]
    assert steps.count("canary 50 %") == 2, "it began again"


def test_what_cannot_be_rolled_out_is_refused(process: Process, world: World) -> None:
    protocol(world).release(1, world.digest(1))
    path = f"/admin/models/{world.model}/rollout"

    def begin(version: int, **plan: object) -> tuple[int, str]:
        found = process.admin("PUT", path, {"version": version, "plan": plan})
        return found.status_code, found.text

    assert begin(1) == (409, f'{{"error":"version 1 of model \'{world.model}\' has the traffic already"}}')
    assert begin(9)[0] == 404
    status, text = begin(2, canary=[0.5, 0.1])
    assert status == 400 and "greater than the one before it" in text
    status, text = begin(2, speed=3)
    assert status == 400 and "plan.speed" in text
    assert process.admin("GET", path).status_code == 404
    assert process.admin("POST", path, {"action": "pause"}).status_code == 404
    world.endpoint.load(world.model, 2, world.digest(2))
    world.endpoint.load(world.model, 3, world.digest(3))
    assert begin(2)[0] == 200 and begin(2)[0] == 200
    status, text = begin(3)
    assert status == 409 and "version 2" in text
    assert process.admin("POST", path, {"action": "explode"}).status_code == 400
    world.endpoint.unload(world.model, 2)
    assert process.admin("GET", path).status_code == 404, "what is taken away is not on trial"
    bad = process.admin("PUT", f"/admin/models/{world.model}/set", {"members": [{"version": 3}]})
    assert bad.status_code == 400 and "members.0.digest" in bad.text
