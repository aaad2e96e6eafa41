"""The endpoint against yardsticks and other servers: requests per second, latency, and CPU time per answer.

    python benchmarks/serving/serving_load.py mlp cnn --connections 1 16 64 --rounds 3 --seconds 4 --output serving.json

All servers of a model are up at the same time and take turns on loopback, the order turned round in every second round;
wrk (a package of most distributions) makes the load with one thread. CPU time is that of all processes of a server. The
load is bounded by rounds, seconds and connections, and everything that was started is ended.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent.parent))

import psutil

from benchmarks.machine_facts import circumstances
from benchmarks.own_stack import unwind_on_signals
from benchmarks.serving.own_endpoint import (
    ROOT,
    call,
    cpu_seconds,
    free_port,
    own_endpoint,
    process_tree,
    put_into_cache,
    running,
    until,
)
from benchmarks.serving.serving_models import MODELS, ServedModel
from model_registry.variant import Variant

WRK_SCRIPT = """
wrk.method = "POST"
local file = io.open(os.getenv("BODY"), "rb")
wrk.body = file:read("*a")
wrk.headers["content-type"] = "application/json"
if os.getenv("JSON_BYTES") ~= "" then
  wrk.headers["content-type"] = "application/octet-stream"
  wrk.headers["inference-header-content-length"] = os.getenv("JSON_BYTES")
end
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("FOUND %d %d %d %d %d\\n", summary.requests, latency:percentile(50), latency:percentile(99),
    summary.duration, e.connect + e.read + e.write + e.status + e.timeout))
end
"""


@dataclass(frozen=True)
class Load:
    """One server under one load: answers per second, milliseconds, microseconds of CPU time per answer."""

    server: str
    connections: int
    rate: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    memory_mb: float
    errors: int


@dataclass(frozen=True)
class Served:
    """A running server."""

    name: str
    process: psutil.Process
    url: str
    binary: bool = False


def main() -> int:
    """Run the benchmark; exit status 1 where an answer was an error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=sorted(MODELS))
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--against", type=Path, nargs="*", default=[], help="other checkouts, to take part")
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args()
    if shutil.which("wrk") is None:
        parser.error("wrk is not installed: apt install wrk, or brew install wrk")
    unwind_on_signals()
    found = {
        "schema": 1,
        **circumstances(("onnxruntime", "numpy", "orjson", "uvloop", "httptools", "pysimdjson", "winnow-mlops")),
        "load_before": os.getloadavg()[0],
        "models": {name: measure(MODELS[name], chosen) for name in chosen.models},
        "load_after": os.getloadavg()[0],
    }
    if chosen.output:
        chosen.output.write_text(json.dumps(found, indent=2) + "\n")
    return int(any(load["errors"] for loads in found["models"].values() for load in loads))


def measure(model: ServedModel, chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """All loads of all servers of a model, one after the other."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="winnow-serving-")))
        variant = model.write(folder / "files")
        servers = list(started(stack, model, folder, variant, chosen.against))
        loads = [
            under_load(server, model, folder, connections, chosen.seconds)
            for number in range(chosen.rounds)
            for connections in chosen.connections
            for server in (servers if number % 2 == 0 else servers[::-1])
        ]
    show(model, loads)
    return [asdict(load) for load in loads]


def started(
    stack: ExitStack, model: ServedModel, folder: Path, variant: Variant, against: Sequence[Path]
) -> Iterator[Served]:
    """Every server that takes part, answering."""
    file = str(folder / "files" / "model.onnx")
    for kind in ("asgi", "raw"):
        port = free_port()
        command = [str(Path(__file__).with_name("serving_baselines.py")), kind, file, model.input, str(port)]
        process = stack.enter_context(running([sys.executable, *command], os.environ))
        yield _answering(Served(kind, process, f"http://127.0.0.1:{port}/v2/models/m/infer"), model)
    for checkout in (ROOT, *against):
        name = "winnow" if checkout == ROOT else checkout.name
        served = stack.enter_context(endpoint(checkout, folder / f"home-{name}", variant, folder / "files", name))
        yield _answering(served, model)
        if checkout == ROOT:
            yield Served(f"{name}, binary", served.process, served.url, binary=True)
    name, more = "winnow, isolation none", {"WINNOW_ENDPOINT_ISOLATION": "none"}
    served = stack.enter_context(endpoint(ROOT, folder / "home-none", variant, folder / "files", name, more))
    yield _answering(served, model)


@contextmanager
def endpoint(
    checkout: Path, home: Path, variant: Variant, files: Path, name: str, more: Mapping[str, str] | None = None
) -> Iterator[Served]:
    """The endpoint of a checkout with the variant in its cache; ``more``: variables of its environment."""
    put_into_cache(home, variant, files)
    with own_endpoint(home, checkout=checkout, more=more) as served:
        served.serve(variant)
        yield Served(name, served.process, served.url)


def under_load(server: Served, model: ServedModel, folder: Path, connections: int, seconds: int) -> Load:
    """A round of load on one server."""
    body, json_bytes = model.binary_body() if server.binary else (model.json_body(), -1)
    (folder / "body").write_bytes(body)
    (folder / "load.lua").write_text(WRK_SCRIPT)
    environment = {
        **os.environ,
        "BODY": str(folder / "body"),
        "JSON_BYTES": str(json_bytes) if server.binary else "",
    }
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(folder / "load.lua"), server.url]
    before = cpu_seconds(server.process)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    spent = cpu_seconds(server.process) - before
    found = re.search(r"FOUND (\d+) (\d+) (\d+) (\d+) (\d+)", done.stdout)
    assert found is not None, done.stdout
    answers, p50, p99, duration, errors = map(int, found.groups())
    memory = sum(p.memory_full_info().pss for p in process_tree(server.process)) / 1e6
    rate, cpu = 1e6 * answers / duration, 1e6 * spent / max(1, answers)
    print(f"{model.name} c={connections} {server.name}: {rate:.0f}/s, {cpu:.0f} us", file=sys.stderr, flush=True)
    return Load(server.name, connections, rate, p50 / 1e3, p99 / 1e3, cpu, memory, errors)


def show(model: ServedModel, loads: Sequence[Load]) -> None:
    """Medians and spread as a table."""
    print(f"\n{model.name}: median [lowest-highest] of {len(loads)} rounds in all")
    print("| connections | server | answers/s | p50 ms | p99 ms | CPU us per answer | memory MB | errors |")
    print("|---|---|---|---|---|---|---|---|")
    for connections in dict.fromkeys(load.connections for load in loads):
        for server in dict.fromkeys(load.server for load in loads):
            rounds = [x for x in loads if (x.server, x.connections) == (server, connections)]
            cells = [_spread([x.rate for x in rounds], ".0f")]
            cells += [_spread([x.p50_ms for x in rounds], ".3g"), _spread([x.p99_ms for x in rounds], ".3g")]
            cells += [_spread([x.cpu_us for x in rounds], ".0f"), f"{max(x.memory_mb for x in rounds):.0f}"]
            print(f"| {connections} | {server} | {' | '.join(cells)} | {sum(x.errors for x in rounds)} |")


def _spread(values: Sequence[float], form: str) -> str:
    return f"{statistics.median(values):{form}} [{min(values):{form}}-{max(values):{form}}]"


def _answering(server: Served, model: ServedModel) -> Served:
    until(lambda: call("POST", server.url, body=model.json_body()))
    return server


if __name__ == "__main__":
    sys.exit(main())
