"""Roll-outs on a real endpoint when something else happens: two at once, a hand on the traffic, killed engines, clients
that hang up, versions that are asked what they do not know. No request is lost, whatever it is."""

from __future__ import annotations

import gzip
import json
import os
import signal
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from conftest import Server
from endpoint_process import ASK, Endpoint, long
from onnx_models import answer, digits, publish, slow
from patience import wait_for
from release_world import World, new_name
from releasing_endpoint import LONG, QUICK, protocol, releasing_endpoint, three_versions, traffic

from model_registry.endpoint_client import EndpointRefused
from model_registry.endpoint_rollout import EndpointRollout
from model_registry.ledger import Ledger
from model_registry.recording import record
from model_registry.release_steps import ReleaseSteps
from model_registry.rollout_plan import RolloutPlan
from model_registry.store import Store
from model_registry.variant import RuntimeSpec, Variant
from model_registry.versions import Versions
from tasks.running.errors import EndpointUnhealthy

SHADOW = RolloutPlan(shadow_seconds=60, shadow_share=1.0, canary=(0.5,), max_slow=0.9)
CANARY = RolloutPlan(shadow_seconds=0, canary=(0.5,), step_seconds=60, max_slow=0.9)


@pytest.fixture(scope="module")
def process(s3: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    with releasing_endpoint(s3, tmp_path_factory.mktemp("endpoint"), "rollouts-in-bad-luck") as running:
        yield running


@pytest.fixture
def world(process: Endpoint, tmp_path: Path) -> Iterator[World]:
    with three_versions(tmp_path) as made:
        yield made


def under_way(world: World, step: str = "") -> bool:
    """Whether a roll-out is, in the step that begins so."""
    found = EndpointRollout(world.endpoint, world.model).state()
    return found is not None and found.going and found.steps[found.step].startswith(step)


def variants_alike(folder: Path, make: Callable[[Path], Variant]) -> tuple[Variant, Variant]:
    """Two published variants that answer alike."""
    store = Store.from_environment()
    one = publish(store, folder, make(folder))
    form = one.model_dump() | {"digest": "", "runtime": RuntimeSpec(arena=False)}
    return one, publish(store, folder, Variant.model_validate(form))


def try_out(process: Endpoint, model: str, one: Variant, two: Variant, plan: RolloutPlan) -> None:
    """Version 1 has the traffic, version 2 is tried beside it; nobody renews that."""
    process.deploy(model, "1", one.digest)
    loaded = process.admin("PUT", f"/admin/models/{model}/versions/2", {"digest": two.digest})
    assert loaded.status_code == 200, loaded.text
    asked = {"version": 2, "plan": plan.model_dump(mode="json")}
    assert process.admin("PUT", f"/admin/models/{model}/rollout", asked).status_code == 200


def trial_of(process: Endpoint, model: str) -> dict[str, Any]:
    found: dict[str, Any] = process.admin("GET", f"/admin/models/{model}/rollout").json()
    return found


# -- others who release ---------------------------------------------------------------------------------------------
def test_of_two_roll_outs_at_once_one_waits_for_the_other(process: Endpoint, world: World) -> None:
    world.register(4, number=5, runtime=RuntimeSpec(graph_optimization="basic"), row=False)
    protocol(world).release(1, world.digest(1))
    with traffic(process, world.model) as answers, ThreadPoolExecutor(2) as pool:
        both = [pool.submit(protocol(world).release, n, world.digest(n), plan=QUICK) for n in (2, 4)]
        done = sorted((found.result() for found in both), key=lambda entry: entry.seq)
    assert [entry.state for entry in done] == ["committed"] * 2 and done[0].seq < done[1].seq
    last = done[1].to_version
    assert (world.champion(), world.loaded()) == (last, [last])
    assert {status for status, _ in answers} == {200}
    ends = [ReleaseSteps(world.store).of(world.model, entry.seq) for entry in done]
    assert ends[0][-1].at <= ends[1][0].at, "the steps of one came after those of the other"
    assert [steps[-1].what for steps in ends] == ["shown", "shown"]


@pytest.mark.parametrize(("given", "champion"), [(3, 1), (2, 2)])
def test_a_hand_on_the_traffic_ends_it(process: Endpoint, world: World, given: int, champion: int) -> None:
    """To another version: the release has failed, and the ledger's champion serves again. To its own: it is through."""
    protocol(world).release(1, world.digest(1))
    with traffic(process, world.model) as answers, ThreadPoolExecutor(1) as pool:
        releasing = pool.submit(protocol(world).release, 2, world.digest(2), plan=LONG)
        wait_for(lambda: under_way(world))
        world.endpoint.load(world.model, 3, world.digest(3))
        world.endpoint.route(world.model, given)
        if given == champion:
            assert releasing.result().state == "committed"
        else:
            with pytest.raises(EndpointUnhealthy, match=r"ended by hand.*version 3 was given the traffic by hand"):
                releasing.result()
    assert (world.champion(), world.loaded()) == (champion, [champion])
    assert {status for status, _ in answers} == {200}
    last = Ledger(world.store).history(world.model)[-1]
    assert last.state == ("committed" if given == champion else "aborted")


# -- engines that die -----------------------------------------------------------------------------------------------
def engines_of(process: Endpoint, world: World) -> list[int]:
    """Of version 2, once all of them are there."""
    wait_for(lambda: len(process.version(world.model, "2")["pids"]) == len(process.version(world.model, "1")["pids"]))
    found: list[int] = process.version(world.model, "2")["pids"]
    return found


def kill_with_requests(process: Endpoint, world: World, engines: list[int], *, seconds: float = 0.2) -> None:
    """Stop them, and kill each when it has had so long to be given requests, those of the last one too."""
    for pid in engines:
        os.kill(pid, signal.SIGSTOP)
    for pid in engines:
        threading.Event().wait(seconds)
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda pid=pid: pid not in process.version(world.model, "2")["pids"])


@pytest.mark.parametrize("step", ["shadow", "canary"])
def test_killed_engines_of_the_new_version_cost_no_answer_and_are_no_failures(
    process: Endpoint, world: World, step: str
) -> None:
    """They are stopped before they are killed, so that requests are in them."""
    protocol(world).release(1, world.digest(1))
    with traffic(process, world.model, clients=4) as answers, ThreadPoolExecutor(1) as pool:
        releasing = pool.submit(protocol(world).release, 2, world.digest(2), plan=QUICK)
        wait_for(lambda: under_way(world, step))
        for number, pid in enumerate(engines_of(process, world), 1):
            kill_with_requests(process, world, [pid])
            wait_for(lambda number=number: process.version(world.model, "2")["restarts"] == number)
        done = releasing.result()
    assert (done.state, world.champion()) == ("committed", 2)
    assert {status for status, _ in answers} == {200}
    seen = next(s.detail for s in ReleaseSteps(world.store).of(world.model, done.seq) if s.what == "tried")
    assert ", 0 failed, " in seen
    assert int(seen.split()[0]) <= len(answers), "a request that was asked twice counts once"


def test_what_two_engines_died_with_the_old_version_answers(process: Endpoint, world: World) -> None:
    longer = LONG.model_copy(update={"step_seconds": 300.0})
    protocol(world).release(1, world.digest(1))
    with traffic(process, world.model, clients=4) as answers, ThreadPoolExecutor(1) as pool:
        releasing = pool.submit(protocol(world).release, 2, world.digest(2), plan=longer)
        wait_for(lambda: under_way(world, "canary"))
        kill_with_requests(process, world, engines_of(process, world), seconds=1.0)
        rollout = EndpointRollout(world.endpoint, world.model)
        wait_for(lambda: (state := rollout.state()) is None or state.failed > 0)
        with suppress(EndpointRefused):  # it was stopped
            rollout.act("abort")
        with pytest.raises(EndpointUnhealthy, match=r", [1-4] failed, "):  # each client's request once
            releasing.result()
    assert {status for status, _ in answers} == {200}


# -- clients that hang up -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("plan", [SHADOW, CANARY], ids=["shadow", "canary"])
def test_a_client_that_hangs_up_in_the_middle_is_nobody_s_failure(
    process: Endpoint, tmp_path: Path, plan: RolloutPlan
) -> None:
    model = new_name()
    try_out(process, model, *variants_alike(tmp_path / "slow", slow), plan)
    address = urlsplit(process.url)
    body = json.dumps(long(30_000)).encode()
    for _ in range(4):
        with socket.create_connection((address.hostname, address.port)) as client:
            head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            threading.Event().wait(0.05)  # an engine has it, and needs longer than that
    before = trial_of(process, model)
    assert (before["state"], before["failed"]) == ("running", 0)
    found = [process.infer(model, long(1)) for _ in range(10)]
    assert {one.status_code for one in found} == {200}
    wait_for(lambda: trial_of(process, model)["answered"] > before["answered"])
    after = trial_of(process, model)
    assert (after["state"], after["failed"], after["differ"]) == ("running", 0, 0)


# -- every form of a request ----------------------------------------------------------------------------------------
def forms(rows: int) -> dict[str, tuple[bytes, dict[str, str]]]:
    """Requests for ``rows`` images by their form: body and headers."""
    images = np.arange(rows * 64, dtype=np.float32).reshape(rows, 1, 8, 8) % 17
    tensor: dict[str, Any] = {"name": "image", "datatype": "FP32", "shape": [rows, 1, 8, 8]}
    only_label = {"outputs": [{"name": "label"}]}
    plain = json.dumps({"inputs": [{**tensor, "data": images.ravel().tolist()}], **only_label}).encode()
    head = json.dumps(
        {
            "inputs": [{**tensor, "parameters": {"binary_data_size": images.nbytes}}],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    length = "inference-header-content-length"
    return {
        "json": (plain, {}),
        "binary": (head + images.tobytes(), {length: str(len(head))}),
        "gzip": (gzip.compress(plain), {"content-encoding": "gzip"}),
        "deflate": (zlib.compress(plain), {"content-encoding": "deflate"}),
        "packed answer": (head + images.tobytes(), {length: str(len(head)), "accept-encoding": "gzip"}),
        "raw": (images[:1].tobytes(), {length: "0"}),
    }


def test_every_form_of_a_request_is_mirrored(process: Endpoint, tmp_path: Path) -> None:
    """Large ones too, which have engines of their own; the answers to all of them are compared row by row."""
    model, compared = new_name(), 0
    try_out(process, model, *variants_alike(tmp_path / "digits", digits), SHADOW)
    asked = [(form, 40, *sent) for form, sent in forms(40).items()]
    asked += [(f"large {form}", 5000, *sent) for form, sent in forms(5000).items() if form in ("json", "binary")]
    for form, rows, body, headers in asked:
        assert rows < 5000 or len(body) > 1 << 20, form
        compared += 1 if form == "raw" else rows

        def ask(body: bytes = body, headers: dict[str, str] = headers) -> int:
            answered = process.client.post(f"{process.url}/v2/models/{model}/infer", content=body, headers=headers)
            assert answered.status_code == 200, answered.text
            assert answered.headers.get("content-encoding") == headers.get("accept-encoding")
            return answered.status_code

        threading.Event().wait(0.05)  # so often at most
        ask()
        wait_for(lambda compared=compared: trial_of(process, model)["compared"] >= compared)
        found = trial_of(process, model)
        assert (form, found["compared"], found["differ"], found["failed"]) == (form, compared, 0, 0)


# -- versions that are asked what they do not know ------------------------------------------------------------------
def register(world: World, version: int, folder: Path, **other: Any) -> None:
    """A version that answers 5, as version 1 does, and has other inputs or outputs; it answers as recorded."""
    variant = publish(world.store, folder, answer(folder, 5, **other))
    width = other.get("width", 2)
    given = {other.get("x", "x"): np.zeros((3, width), dtype=np.float32)}
    record(world.store, variant, given, np.full((3, width), 5, dtype=np.float32))
    assert Versions(world.store).add(world.model, variant.digest) == version


@pytest.mark.parametrize("plan", [SHADOW, CANARY], ids=["shadow", "canary"])
@pytest.mark.parametrize("other", [{"width": 3}, {"x": "z"}], ids=["shape", "name"])
def test_a_version_with_other_inputs_is_stopped_and_no_client_is_refused(
    process: Endpoint, world: World, tmp_path: Path, plan: RolloutPlan, other: dict[str, Any]
) -> None:
    register(world, 4, tmp_path / "other", **other)
    protocol(world).release(1, world.digest(1))
    with (
        traffic(process, world.model) as answers,
        pytest.raises(EndpointUnhealthy, match=r"requests failed \(\d+ refused that version 1 answers\)"),
    ):
        protocol(world).release(4, world.digest(4), plan=plan)
    assert set(answers) == {(200, "1")}
    assert (world.champion(), world.loaded()) == (1, [1])


def test_a_version_without_an_output_is_stopped(process: Endpoint, world: World, tmp_path: Path) -> None:
    register(world, 4, tmp_path / "other", y="z")
    protocol(world).release(1, world.digest(1))
    with traffic(process, world.model) as answers, pytest.raises(EndpointUnhealthy, match="answered differently"):
        protocol(world).release(4, world.digest(4), plan=SHADOW)
    assert set(answers) == {(200, "1")}


def test_what_no_version_would_answer_stops_nothing(process: Endpoint, world: World) -> None:
    """A client that does everything wrong: a shape, a parameter, an input."""
    protocol(world).release(1, world.digest(1))
    tensor = ASK["inputs"][0]
    wrong = [
        {"inputs": [{**tensor, "shape": [2, 1]}]},
        {**ASK, "parameters": {"priority": 1}},
        {"inputs": [{**tensor, "name": "z"}]},
    ]
    with (
        traffic(process, world.model, clients=1) as answers,
        traffic(process, world.model, 1, wrong[0]) as a,
        traffic(process, world.model, 1, wrong[1]) as b,
        traffic(process, world.model, 1, wrong[2]) as c,
    ):
        done = protocol(world).release(2, world.digest(2), plan=QUICK)
    assert (done.state, world.champion()) == ("committed", 2)
    assert [{status for status, _ in found} for found in (answers, a, b, c)] == [{200}, {400}, {501}, {400}]


# -- sets -----------------------------------------------------------------------------------------------------------
def test_a_member_of_a_set_is_tried_and_taken_away_by_hand(process: Endpoint, world: World) -> None:
    """It answers those who name it all the while, and its share of the others; without it the set is smaller."""
    for number in (1, 2, 3):
        world.endpoint.load(world.model, number, world.digest(number))
    world.endpoint.route(world.model, 1)
    members = [
        {"version": n, "digest": world.digest(n), "name": f"v{n}", "metric": "accuracy", "better": "higher"}
        | {"value": 1 - n / 100, "p50_ms": 4 / n, "bytes": 1}
        for n in (1, 2, 3)
    ]
    path = f"/admin/models/{world.model}"
    assert process.admin("PUT", f"{path}/set", {"members": members}).status_code == 200
    asked = {"version": 2, "plan": CANARY.model_dump(mode="json")}
    assert process.admin("PUT", f"{path}/rollout", asked).status_code == 200

    def named(number: int) -> tuple[int, str]:
        found = process.infer(world.model, {**ASK, "parameters": {"variant": f"v{number}"}})
        return found.status_code, found.json().get("model_version", found.text)

    with traffic(process, world.model) as answers:
        wait_for(lambda: len(answers) > 50)
        assert [named(number) for number in (1, 2, 3)] == [(200, "1"), (200, "2"), (200, "3")]
        assert {version for _, version in answers} == {"1", "2"}
        assert process.admin("DELETE", f"{path}/versions/2").status_code == 200
        after = len(answers)
        wait_for(lambda: len(answers) > after + 50)
        assert {version for _, version in answers[after + 4 :]} == {"1"}
    assert {status for status, _ in answers} == {200}
    assert process.admin("GET", f"{path}/rollout").status_code == 404
    status, text = named(2)
    assert status == 400 and "there are v1 (version 1), v3 (version 3)" in text
    assert (named(1), named(3)) == ((200, "1"), (200, "3"))
    refused = process.admin("PUT", f"{path}/set", {"members": [{**members[0], "value": "NaN"}]})
    assert refused.status_code == 400 and "members.0.value" in refused.text
