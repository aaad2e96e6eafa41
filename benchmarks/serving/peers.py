"""The endpoint against other model servers: requests per second, latency, and CPU time per answer.

    python benchmarks/serving/peers.py --rounds 3 --seconds 4

Each peer has an environment of its own (installed once into ``benchmarks/serving/.peers/``, minutes and 2.5 GB), the
same version of ONNX Runtime as ours, one worker, and its own batching where it has some for this kind of request. All
are up at the same time and take turns, as in ``serving_load.py``; before that, what each answers is compared with ours.
One that cannot be installed or started is listed with the reason. Exit status 1 where an answer was wrong or an error.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent.parent))

import numpy as np
import psutil

from benchmarks.installed_peer import installed
from benchmarks.own_stack import unwind_on_signals
from benchmarks.serving.own_endpoint import call, free_port, own_endpoint, process_tree, put_into_cache, until
from benchmarks.serving.serving_load import Load, Served, under_load
from benchmarks.serving.serving_models import MODELS, ServedModel
from benchmarks.serving.serving_report import print_report, spread

HERE = Path(__file__).absolute().parent
_RUNTIME = "onnxruntime==1.31.1"
_START_SECONDS = 60.0
_END_SECONDS = 10.0


@dataclass(frozen=True)
class Peer:
    """``requirements``: what is installed in turn; ``command``: behind its environment's ``bin/``; ``path``: where it
    is asked; ``interpreter``: of its environment."""

    requirements: tuple[tuple[str, ...], ...]
    command: tuple[str, ...]
    path: str
    interpreter: str = sys.executable


PEERS = {
    "mosec": Peer((("mosec==0.9.8", _RUNTIME, "numpy", "orjson"),), ("python", "peer_mosec.py"), "/inference"),
    "litserve": Peer(
        (("torch==2.13.0",), ("litserve==0.2.19", _RUNTIME, "numpy")), ("python", "peer_litserve.py"), "/predict"
    ),
    "bentoml": Peer(
        (("bentoml==1.4.40", _RUNTIME, "numpy"),), ("bentoml", "serve", "peer_bentoml:Peer", "--port", "PORT"), "/infer"
    ),
    "mlserver": Peer((("mlserver==1.7.1", _RUNTIME, "numpy"),), ("mlserver", "start", "FOLDER"), "/v2/models/m/infer"),
    "ray_serve": Peer((("ray[serve]==2.60.0", _RUNTIME, "numpy"),), ("python", "peer_ray_serve.py"), "/infer"),
    # Triton has a Python within, of Debian or Ubuntu, that takes only their own modules of the standard library.
    "pytriton": Peer(
        (("nvidia-pytriton==0.7.0", _RUNTIME),),
        ("python", "peer_pytriton.py"),
        "/v2/models/m/infer",
        interpreter="/usr/bin/python3",
    ),
}


class PeerMissing(Exception):
    """A peer that cannot take part, and why."""


def main() -> int:
    """Run it; see above for the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", nargs="*", default=sorted(PEERS), help=f"of {', '.join(sorted(PEERS))}")
    parser.add_argument("--model", choices=("mlp", "cnn"), default="mlp")
    parser.add_argument("--connections", type=int, nargs="+", default=[64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--environments", type=Path, default=HERE / ".peers")
    chosen = parser.parse_args()
    if unknown := sorted(set(chosen.peers) - set(PEERS)):
        parser.error(f"no such peer: {', '.join(unknown)}")
    if shutil.which("wrk") is None:
        parser.error("wrk is not installed: apt install wrk, or brew install wrk")
    unwind_on_signals()
    model, missing = MODELS[chosen.model], dict[str, str]()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="winnow-peers-")))
        variant = model.write(folder / "files")
        put_into_cache(folder / "home", variant, folder / "files")
        ours = stack.enter_context(own_endpoint(folder / "home"))
        ours.serve(variant)
        until(lambda: call("POST", ours.url, body=model.json_body()))
        expected = logits(ours.url, model)
        servers, wrong = [Served("winnow", ours.process, ours.url)], list[str]()
        for name in chosen.peers:
            try:
                python = environment(name, chosen.environments)
                served = stack.enter_context(running_peer(name, python, model, folder))
            except PeerMissing as error:
                missing[name] = str(error)
                continue
            if not np.allclose(logits(served.url, model), expected, atol=1e-4):
                wrong.append(name)
            servers.append(served)
        loads = [
            under_load(server, model, folder, connections, chosen.seconds)
            for number in range(chosen.rounds)
            for connections in chosen.connections
            for server in (servers if number % 2 == 0 else servers[::-1])
        ]
    show(loads, chosen, missing)
    for name in wrong:
        print(f"{name} answers other numbers.")
    return int(bool(wrong) or any(load.errors for load in loads))


def environment(name: str, folder: Path) -> Path:
    """The folder of the peer's programs; raises PeerMissing."""
    try:
        return installed(folder / name, PEERS[name].requirements, PEERS[name].interpreter).parent
    except (OSError, subprocess.CalledProcessError) as error:
        raise PeerMissing(f"cannot be installed: {error}; pip says why above") from error


@contextmanager
def running_peer(name: str, programs: Path, model: ServedModel, folder: Path) -> Iterator[Served]:
    """The peer's server, answering; ended with everything it started, whatever group that is in.

    Raises:
        PeerMissing: it does not answer; with the end of what it wrote.
    """
    peer, port, home = PEERS[name], free_port(), folder / name
    home.mkdir()
    settings: dict[str, Any] = {"host": "127.0.0.1", "http_port": port, "grpc_port": free_port()}
    settings |= {"metrics_port": free_port(), "parallel_workers": 0, "debug": False}
    (home / "settings.json").write_text(json.dumps(settings))
    batching = {"max_batch_size": 64, "max_batch_time": 0.001}
    (home / "model-settings.json").write_text(
        json.dumps({"name": "m", "implementation": "peer_mlserver.Peer", **batching})
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")} | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(HERE),
        "HOME": str(home),
        "BENTOML_DO_NOT_TRACK": "True",
        "DO_NOT_TRACK": "1",
        "OMP_NUM_THREADS": "1",
        "PEER_PORT": str(port),
        "PEER_INPUT": model.input,
        "PEER_SHAPE": ",".join(map(str, model.shape)),
        "PEER_MODEL": str(folder / "files" / "model.onnx"),
    }
    words = [{"PORT": str(port), "FOLDER": str(home)}.get(word, word) for word in peer.command]
    command, log = [str(programs / words[0]), *words[1:]], home / "log"
    with (
        log.open("wb") as stream,
        subprocess.Popen(command, cwd=HERE, env=environment, stdout=stream, stderr=stream) as popen,
    ):
        process = psutil.Process(popen.pid)
        served = Served(name, process, f"http://127.0.0.1:{port}{peer.path}")
        try:
            wait_for(popen, lambda: call("POST", served.url, body=model.json_body()), log)
            yield served
        finally:
            tree = process_tree(process)
            popen.terminate()
            for other in psutil.wait_procs(tree, timeout=_END_SECONDS)[1]:
                other.kill()


def wait_for(popen: subprocess.Popen[bytes], attempt: Any, log: Path) -> None:
    """Until the attempt succeeds; raises PeerMissing where the process ends first, or it takes too long."""
    end = time.monotonic() + _START_SECONDS
    while True:
        try:
            attempt()
            return
        except (OSError, ValueError) as error:
            if popen.poll() is not None or time.monotonic() > end:
                last = log.read_text(errors="replace").strip().splitlines()[-1:] or [str(error)]
                raise PeerMissing(f"does not answer: {error}; its log ends with: {last[0][:200]}") from error
            time.sleep(0.1)


def logits(url: str, model: ServedModel) -> Any:
    """What a server answers."""
    return np.ravel(call("POST", url, body=model.json_body())["outputs"][0]["data"])


def show(loads: list[Load], chosen: argparse.Namespace, missing: dict[str, str]) -> None:
    """Medians and spread, and how many times our CPU time a peer takes."""
    rows = []
    for connections in chosen.connections:
        found = by_server(loads, connections)
        ours = cpu_us_of(found["winnow"])
        for server, rounds in found.items():
            rows.append(
                (
                    connections,
                    server,
                    spread([x.rate for x in rounds], ".0f"),
                    spread([x.p50_ms for x in rounds]),
                    spread([x.p99_ms for x in rounds]),
                    spread([x.cpu_us for x in rounds], ".0f"),
                    f"{cpu_us_of(rounds) / ours:.1f}",
                    f"{max(x.memory_mb for x in rounds):.0f}",
                    sum(x.errors for x in rounds),
                )
            )
    print_report(
        f"The endpoint and others ({chosen.model}, JSON), {chosen.rounds} interleaved rounds of {chosen.seconds} s.",
        (
            "connections",
            "server",
            "answers/s",
            "p50 ms",
            "p99 ms",
            "CPU us per answer",
            "of ours",
            "memory MB",
            "errors",
        ),
        rows,
    )
    versions = (requirement for name in chosen.peers for requirement in PEERS[name].requirements[-1][:1])
    print(f"\nPeers: {', '.join(versions)}; {_RUNTIME} in each.")
    for name, why in missing.items():
        print(f"{name}: {why}")


def by_server(loads: list[Load], connections: int) -> dict[str, list[Load]]:
    """The rounds of so many connections, by server in the order in which they came."""
    return {
        server: [x for x in loads if (x.server, x.connections) == (server, connections)]
        for server in {x.server: 0 for x in loads}
    }


def cpu_us_of(loads: list[Load]) -> float:
    """The median of the CPU time."""
    return float(np.median([load.cpu_us for load in loads]))


if __name__ == "__main__":
    sys.exit(main())
