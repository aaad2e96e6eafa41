"""What an endpoint shows of itself: metrics as Prometheus reads them, and the status page in a browser."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlsplit

import httpx
import pytest
from conftest import Server
from endpoint_process import ASK, TOKEN, Endpoint, endpoint
from onnx_models import numbered
from patience import wait_for
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright
from prometheus_client.parser import text_string_to_metric_families

from model_registry.api_keys import ApiKey, KeyFile
from model_registry.store import Store
from serving.cpu_accounts import process_use
from serving.endpoint import EndpointMisconfigured, EndpointSettings
from serving.exceptions import NotReady, Overloaded, TooManyRequests
from serving.front.request_counts import MOST_KEYS, RequestCounts
from serving.front.status_page import status_page
from serving.key_ring import Principal

COST = 0.36


def basic(password: str, user: str = "anybody") -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.fixture(scope="module")
def keys() -> dict[str, str]:
    return {}


@pytest.fixture(scope="module")
def watched(s3: Server, tmp_path_factory: pytest.TempPathFactory, keys: dict[str, str]) -> Iterator[Endpoint]:
    """An endpoint with a few models, a key for each of two clients, and a price."""
    folder = tmp_path_factory.mktemp("watched")
    file = KeyFile(folder / "home" / "keys.json")
    keys["shop"] = file.add("shop")[1]
    keys["slow"] = file.add("slow", rate=0.001)[1]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**s3.environment, "WINNOW_STORE": "s3://watched"}.items():
            patch.setenv(name, value)
        store = Store.from_environment()
        store.prepare()
        one, two = (numbered(store, folder, number) for number in (1, 2))
        with endpoint(folder / "home", WINNOW_CPU_HOUR_COST=str(COST)) as running:
            running.deploy("m", "1", one.digest)
            running.deploy("m", "2", two.digest)
            running.deploy("other", "1", one.digest)
            running.deploy("idle", "1", two.digest)
            yield running


def ask(running: Endpoint, key: str, model: str = "m", version: str = "", body: Any = ASK) -> int:
    part = f"/versions/{version}" if version else ""
    path = f"{running.url}/v2/models/{model}{part}/infer"
    return running.client.post(path, json=body, headers={"authorization": f"Bearer {key}"}).status_code


class Metrics:
    """What Prometheus reads."""

    def __init__(self, running: Endpoint) -> None:
        found = running.admin("GET", "/metrics")
        assert found.status_code == 200
        self.samples = [s for family in text_string_to_metric_families(found.text) for s in family.samples]

    def __call__(self, metric: str, /, **labels: str) -> float:
        (found,) = (s.value for s in self.samples if s.name == metric and labels.items() <= s.labels.items())
        return found

    def has(self, metric: str, /, **labels: str) -> bool:
        return any(s.name == metric and labels.items() <= s.labels.items() for s in self.samples)


# -- metrics ----------------------------------------------------------------------------------------------------
def test_cpu_time_and_its_cost_are_those_of_the_processes(watched: Endpoint, keys: dict[str, str]) -> None:
    for _ in range(200):
        assert ask(watched, keys["shop"], "other") == 200
    found = Metrics(watched)
    uses = [process_use(pid) for pid in watched.version("other", "1")["pids"]]
    cpu = found("winnow_engine_cpu_seconds_total", model="other")
    assert cpu > 0 and cpu == pytest.approx(sum(use.cpu_seconds for use in uses if use is not None), abs=0.05)
    assert found("winnow_engine_resident_bytes", model="other") > 1e6
    engine = found("winnow_cpu_ms_per_1000_requests", model="other", part="engine")
    front = found("winnow_cpu_ms_per_1000_requests", model="other", part="front")
    # Loading takes a multiple of what answering 200 such requests does: it is not among them.
    requests = found("winnow_requests_total", model="other", status="200")
    assert 0 <= engine * requests / 1e6 < cpu
    assert front > 0
    cost = found("winnow_cost_per_1000_requests", model="other")
    assert cost == pytest.approx((engine + front) / 1e3 / 3600 * COST)
    assert not found.has("winnow_cpu_ms_per_1000_requests", model="m", version="1")  # asked for nothing yet
    assert found("process_cpu_seconds_total") > 0 and found("process_resident_memory_bytes") > 1e7


def test_requests_are_counted_by_key_and_what_is_shed_by_reason(watched: Endpoint, keys: dict[str, str]) -> None:
    assert ask(watched, keys["shop"]) == 200
    shop = Metrics(watched)("winnow_key_requests_total", name="shop")
    assert ask(watched, keys["slow"]) == 200
    assert ask(watched, keys["slow"]) == 429
    assert ask(watched, keys["shop"], "nothing") == 404
    found = Metrics(watched)
    assert found("winnow_key_requests_total", name="slow") == 2
    assert found("winnow_key_requests_total", name="shop") == shop + 1
    assert found("winnow_shed_requests_total", reason="rate", model="m") == 1
    assert found("winnow_waiting_bytes", model="m", version="2") == 0
    assert not any("wk_" in value for sample in found.samples for value in sample.labels.values())


def test_what_waits_is_counted_and_what_finds_no_version_is_shed(watched: Endpoint, keys: dict[str, str]) -> None:
    pids, asked = watched.version("other", "1")["pids"], []
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    with ThreadPoolExecutor(10) as pool:
        try:
            for _ in range(10):  # one after the other, so that each is a frame, and more of them than engines take
                asked.append(pool.submit(ask, watched, keys["shop"], "other"))
                time.sleep(0.02)
            found = Metrics(watched)
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
    waiting = found("winnow_waiting_requests", model="other")
    length = len(json.dumps(ASK, separators=(",", ":")))  # as httpx sends it
    assert waiting > 0 and found("winnow_waiting_bytes", model="other") == waiting * length
    assert {one.result() for one in asked} == {200}
    assert watched.admin("POST", "/admin/models/idle/traffic", {"version": None}).status_code == 200
    assert ask(watched, keys["shop"], "idle") == 503
    assert Metrics(watched)("winnow_shed_requests_total", model="idle", reason="not ready") == 1


def test_without_isolation_all_is_the_front_s(store: Store, tmp_path: Path) -> None:
    variant = numbered(store, tmp_path, 1)
    with endpoint(tmp_path / "home", WINNOW_ENDPOINT_ISOLATION="none", WINNOW_CPU_HOUR_COST="1") as running:
        running.deploy("m", "1", variant.digest)
        assert running.infer("m", ASK).status_code == 200
        found = Metrics(running)
        assert not found.has("winnow_engine_cpu_seconds_total", model="m")
        front = found("winnow_cpu_ms_per_1000_requests", model="m", part="front")
        assert found("winnow_cost_per_1000_requests", model="m") == pytest.approx(front / 3.6e6)
        (version,) = running.admin("GET", "/admin/status").json()["models"][0]["versions"]
        assert version["resident_bytes"] is None and version["cpu_ms_per_1000"] >= front


def test_an_engine_s_time_is_not_lost_with_it(watched: Endpoint) -> None:
    before = Metrics(watched)("winnow_engine_cpu_seconds_total", model="m", version="2")
    pid = watched.version("m", "2")["pid"]
    os.kill(pid, 9)
    wait_for(lambda: watched.version("m", "2")["pid"] not in (None, pid))
    after = Metrics(watched)("winnow_engine_cpu_seconds_total", model="m", version="2")
    assert after >= before


def test_the_51st_key_and_names_of_no_model_add_nothing_to_the_metrics() -> None:
    counts = RequestCounts({"m"})
    connection = cast(Any, None)

    def came(number: int, model: str = "m", error: Exception | None = None) -> None:
        key = ApiKey(id=f"{number:08x}", name=f"k{number}", digest="0" * 64)
        head = cast(Any, SimpleNamespace(route=SimpleNamespace(principal=Principal(key), model=model)))

        def handler(*_: Any) -> None:
            if error is not None:
                raise error

        counts.counted(handler)(connection, head, b"")

    for number in range(MOST_KEYS + 7):
        came(number)
    came(0)
    assert len(counts.by_key) == MOST_KEYS + 1
    assert counts.by_key["other", ""] == 7 and counts.by_key["00000000", "k0"] == 2
    for name in ("m", "x", "y"):
        with pytest.raises(NotReady):
            came(0, name, NotReady("loading"))
    with pytest.raises(TooManyRequests):
        came(0, "m", TooManyRequests("too many", 1.0))
    with pytest.raises(Overloaded):
        came(0, "m", Overloaded("full"))
    assert counts.shed == {("m", "not ready"): 1, ("", "not ready"): 2, ("m", "rate"): 1, ("m", "queue"): 1}
    assert counts.total == MOST_KEYS + 13


@pytest.mark.parametrize("cost", ["a lot", "-1", "inf", "nan"])
def test_a_price_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, cost: str) -> None:
    monkeypatch.setenv("WINNOW_CPU_HOUR_COST", cost)
    with pytest.raises(EndpointMisconfigured, match="WINNOW_CPU_HOUR_COST"):
        EndpointSettings.from_environment()


# -- signing in -------------------------------------------------------------------------------------------------
def test_a_browser_signs_in_with_the_token_and_may_only_look(watched: Endpoint) -> None:
    def say(path: str, method: str = "GET", **headers: str) -> httpx.Response:
        return watched.client.request(method, f"{watched.admin_url}{path}", headers=headers, json={"version": None})

    for wrong in ({}, basic("wrong"), basic(TOKEN + "x"), basic(""), {"authorization": "Basic !"}):
        found = say("/admin", **wrong)
        assert (found.status_code, found.headers["www-authenticate"][:21]) == (401, 'Basic realm="winnow",')
        assert TOKEN not in found.text
        found = say("/admin/status", **wrong)
        assert (found.status_code, found.headers["www-authenticate"]) == (401, "Bearer")  # no window of the browser's
    for user in ("", "anybody", "a b"):
        assert say("/admin", **basic(TOKEN, user)).status_code == 200
    assert say("/metrics", **basic(TOKEN)).status_code == 200
    # What a browser knows it sends along with whatever another page asks of this port.
    for method, path in (("POST", "/admin/models/m/traffic"), ("DELETE", "/admin/models/m/versions/1")):
        assert say(path, method, **basic(TOKEN)).status_code == 401
    assert watched.version("m", "1")["state"] == "ready"


def test_nothing_runs_in_the_page_but_its_own_script() -> None:
    page, lines = status_page()
    policy = lines.decode().partition("\r\n")[0]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert not re.search(rb"\son\w+\s*=|style=|javascript:|innerHTML|https?://(?!www\.w3\.org/2000/svg)", page)


# -- the page in a browser ----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield started
        started.close()


def viewed(browser: Browser, url: str, **more: Any) -> tuple[Page, list[str]]:
    """The page, and what it complained about."""
    page = browser.new_page(base_url=url, **more)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    return page, faults


def test_the_page_shows_what_happens(watched: Endpoint, keys: dict[str, str], browser: Browser) -> None:
    credentials = {"username": "x", "password": TOKEN}
    page, faults = viewed(browser, watched.admin_url, http_credentials=credentials)
    page.goto("/admin")
    expect(page.locator("#link")).to_contain_text("live")
    row = page.locator("section", has=page.get_by_role("heading", name="m", exact=True)).locator("tbody tr").nth(1)
    expect(row).to_contain_text("2 · has the traffic")
    end = time.monotonic() + 3
    while time.monotonic() < end:
        assert ask(watched, keys["shop"]) == 200
    assert ask(watched, keys["shop"], body={}) == 400
    expect(row.locator('[data-label="requests"]')).to_have_text(re.compile(r"^\d{2,}(\.\d+)?/s$"))
    expect(row.locator('[data-label="p50"]')).to_have_text(re.compile(r"^[\d.]+ ms$"))
    expect(row.locator('[data-label="refused"]')).not_to_have_text("0/s")
    expect(page.locator("#totals")).to_contain_text("p99")
    assert faults == []
    page.close()


def test_a_set_and_a_roll_out_of_an_endpoint_are_shown(
    watched: Endpoint, keys: dict[str, str], browser: Browser
) -> None:
    members = [
        {"version": number, "digest": watched.version("m", str(number))["digest"], "name": name}
        | {"metric": "accuracy", "better": "higher", "value": value, "p50_ms": ms, "bytes": 1}
        for number, name, value, ms in ((1, "small", 0.9, 0.01), (2, "large", 0.95, 5.0))
    ]
    assert watched.admin("PUT", "/admin/models/m/set", {"members": members}).status_code == 200
    plan = {"shadow_share": 1.0, "shadow_seconds": 60}
    assert watched.admin("PUT", "/admin/models/m/rollout", {"version": 1, "plan": plan}).status_code == 200
    page, faults = viewed(browser, watched.admin_url, http_credentials={"username": "", "password": TOKEN})
    page.goto("/admin")
    section = page.locator("section", has=page.get_by_role("heading", name="m", exact=True))
    expect(section).to_contain_text("version 1 in the place of 2: running")
    expect(section).to_contain_text("accuracy 0.95 (higher is better)")
    end = time.monotonic() + 30
    while watched.admin("GET", "/admin/models/m/rollout").json()["state"] == "running":  # they answer 1 and 2
        assert ask(watched, keys["shop"]) == 200 and time.monotonic() < end
    expect(section).to_contain_text(re.compile(r"in the place of 2: failed: \d+ of \d+ rows were answered differently"))
    assert faults == []
    page.close()


class Told:
    """Stands for an endpoint that a page is shown of: what it answers can be changed while the page looks on."""

    def __init__(self, browser: Browser, **more: Any) -> None:
        self.models: list[dict[str, Any]] = []
        self.started, self.now, self.status, self.waiting_for, self.asked = 1000.0, 0.0, 200, "", 0
        self.page, self.faults = viewed(browser, "http://endpoint.test", **more)
        self.page.route("**/*", self._answer)
        self.page.clock.install()
        self.page.goto("/admin")

    def _answer(self, route: Route) -> None:
        path = urlsplit(route.request.url).path
        if path == "/admin":
            body, lines = status_page()
            headers = dict(line.split(": ", 1) for line in lines.decode().splitlines())
            route.fulfill(body=body, headers={**headers, "content-type": "text/html; charset=utf-8"})
            return
        self.asked += 1
        if path != "/admin/status" or not self.status:
            route.abort()
        elif self.status != 200:
            route.fulfill(status=self.status, json={"error": "no"})
        else:
            self.now += 1
            route.fulfill(json=self._state())

    def _state(self) -> dict[str, Any]:
        front = {"cpu_seconds": 0.3 * self.now, "resident_bytes": 9e7, "connections": 3, "shed": {"bodies": 5}}
        models = json.loads(json.dumps(self.models))
        for version in (v for model in models for v in model.get("versions", [])):  # 40 a second since the start
            version["statuses"] = {"200": int(40 * self.now), "500": int(self.now)}
            version["buckets"] = [0, int(30 * self.now), int(10 * self.now), 0]
            version["rows"], version["runs"] = int(80 * self.now), int(20 * self.now)
        return {
            "models": models,
            "waiting_for": self.waiting_for,
            "grpc": None,
            "started": self.started,
            "now": self.now,
            "seconds": [0.001, 0.002, 0.004],
            "front": front,
        }

    def wait(self, asked: int) -> None:
        """Have the page ask so often, without waiting for it to be time to."""
        for _ in range(asked):
            before = self.asked
            while self.asked == before:
                self.page.clock.run_for(1000)
            self.page.wait_for_timeout(20)


def model(name: str, *versions: str, **more: Any) -> dict[str, Any]:
    made = [
        {"version": version, "digest": version * 64, "state": "ready", "reason": "", "restarts": 0}
        | {"waiting": 0, "engines": 2, "resident_bytes": 6.1e7, "cpu_ms_per_1000": 83.0, "cost_per_1000": 1.2e-6}
        for version in versions
    ]
    serving = versions[0] if versions else None
    return {"model": name, "serving": serving, "reason": "", "versions": made, "shed": {}, **more}


WIDE = model(
    "front",
    "1",
    "2",
    "3",
    degraded=1,
    shed={"queue": 12, "rate": 3},
    set=[
        {"version": v, "name": n, "metric": "accuracy", "value": a, "better": "higher"}
        | {"latency_ms": ms, "degraded_requests": d}
        for v, n, a, ms, d in (("1", "teacher", 0.9712, 2.2, 0), ("2", "pruned-40-int8", 0.9688, 0.31, 512))
    ],
    rollout={
        "version": "3",
        "old": "1",
        "state": "running",
        "why": "",
        "step": 1,
        "steps": ["shadow 10 % for 60 s", "canary 5 % for 60 s", "canary 50 % for 60 s"],
        "step_seconds": 12.5,
        "seconds": 73.1,
        "compared": 1040,
        "differ": 2,
        "largest_difference": 0.0123,
        "answered": 2048,
        "failed": 0,
        "slow": 7,
    },
)
FAILED = {**WIDE["rollout"], "state": "failed", "why": "40 of 90 requests failed; a share of 0.01 may"}


def test_rates_and_percentiles_are_of_the_last_seconds(browser: Browser) -> None:
    told = Told(browser)
    told.models = [model("m", "1")]
    told.wait(8)
    row = told.page.locator("tbody tr").first

    def at(label: str) -> str:
        return row.locator(f'[data-label="{label}"]').inner_text().strip()

    # 30 of 40 answers took 1 to 2 ms, the others up to 4 ms.
    assert (at("requests"), at("errors"), at("rows per run")) == ("41/s", "1/s", "4")
    assert (at("p50"), at("p95"), at("p99")) == ("1.67 ms", "3.6 ms", "3.92 ms")
    assert (at("CPU per 1000"), at("memory"), at("cost per 1000")) == ("83 ms", "61 MB", "1.20e-6")
    totals = told.page.locator("#totals").inner_text().split("\n")
    assert totals[totals.index("CPU of the front") + 1] == "30 %" and totals[totals.index("shed: bodies") + 1] == "5"
    assert told.faults == []
    told.page.close()


def test_variants_and_roll_outs_are_shown_and_why_one_ended(browser: Browser) -> None:
    told = Told(browser)
    told.models = [WIDE]
    told.wait(2)
    main = told.page.locator("#models")
    for text in ("pruned-40-int8", "accuracy 0.9688 (higher is better)", "512", "degraded by 1", "12 queue, 3 rate"):
        expect(main).to_contain_text(text)
    expect(told.page.locator("li.now")).to_have_text("canary 5 % for 60 s")
    expect(main).to_contain_text("version 3 in the place of 1: running")
    told.models = [{**WIDE, "rollout": FAILED}]
    told.wait(1)
    expect(main).to_contain_text("failed: 40 of 90 requests failed; a share of 0.01 may")
    told.models = [model("front", "1")]  # of an endpoint that knows neither
    told.wait(1)
    expect(told.page.get_by_text("Roll-out")).to_be_hidden()
    expect(told.page.get_by_text("pruned-40-int8")).to_be_hidden()
    assert told.faults == []
    told.page.close()


def test_no_model_many_models_and_names_that_are_no_html(browser: Browser) -> None:
    told = Told(browser)
    told.waiting_for = "<b>the ledger</b>"
    told.wait(1)
    expect(told.page.locator("#models")).to_contain_text("No model is loaded")
    expect(told.page.locator("#waits")).to_have_text("<b>the ledger</b>")
    bad = "<img src=x onerror=document.title='owned'>"
    away = model("away", reason=bad)
    told.models = [away, *(model(f"m{n:03}", "1", "2") for n in range(120))]
    told.wait(1)
    expect(told.page.locator("section")).to_have_count(121)
    expect(told.page.locator("section").first).to_contain_text(bad)
    told.page.get_by_label("Filter models").fill("m11")
    expect(told.page.locator("section:visible")).to_have_count(10)
    told.wait(1)
    expect(told.page.locator("section:visible")).to_have_count(10)
    assert told.page.title() == "Winnow endpoint" and told.page.locator("img, main b").count() == 0
    assert told.faults == []
    told.page.close()


def test_an_endpoint_that_is_away_starts_again_or_has_another_token(browser: Browser) -> None:
    told = Told(browser)
    told.models = [model("m", "1")]
    told.wait(3)
    link = told.page.locator("#link")
    told.status = 0
    told.wait(2)
    expect(link).to_contain_text("has not answered since")
    told.status, told.started, told.now = 200, 2000.0, 0.0
    told.wait(3)
    expect(link).to_contain_text("restarted")
    row = told.page.locator("tbody tr").first  # its counters began again: no rate of before, none below zero
    expect(row.locator('[data-label="requests"]')).to_have_text("41/s")
    told.status = 401
    told.wait(2)
    expect(link).to_contain_text("reload the page and sign in")
    told.status = 503
    told.wait(2)
    expect(link).to_contain_text("answers 503: no")
    told.page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_it_fits_and_can_be_read(browser: Browser, scheme: Any, width: int) -> None:
    told = Told(browser, color_scheme=scheme, viewport={"width": width, "height": 900})
    told.models = [WIDE, model("a-model-with-a-name-of-the-longest-kind-that-there-may-be-0123456789", "1")]
    told.wait(4)
    inner, outer = told.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert inner <= outer == width
    ink, paper = told.page.evaluate("['color', 'backgroundColor'].map((n) => getComputedStyle(document.body)[n])")
    dark, light = sorted((ink, paper), key=lambda colour: sum(map(int, re.findall(r"\d+", colour))))
    assert (paper == dark) is (scheme == "dark") and dark != light
    if folder := os.environ.get("WINNOW_SCREENSHOTS"):
        told.page.screenshot(path=f"{folder}/status-{scheme}-{width}.png", full_page=True)
    assert told.faults == []
    told.page.close()
