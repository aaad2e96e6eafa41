"""From the start of the endpoint's process to its first answer, with a cached model of 5 MB, and what takes the time.

    python benchmarks/serving/first_answer.py --rounds 5

Three ways of knowing what to serve: the ledger in an S3 server of the benchmark's own; what was served last, while S3
is away; and a pinned version (``winnow serve --pin``). The parts are measured one by one in processes of
their own, as they are in the endpoint. Exit status 1 where one
does not answer.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent.parent))

from benchmarks.own_stack import unwind_on_signals
from benchmarks.serving.own_endpoint import MODEL, ROOT, call, own_endpoint, put_into_cache
from benchmarks.serving.serving_models import MODELS, ServedModel
from benchmarks.serving.serving_report import print_report, spread
from infra import ports
from infra.daemon import Daemon
from infra.home import Secrets, Settings
from infra.recipes import s3_server
from model_registry.variant import Variant

_GOAL_SECONDS = 1.0
_S3_SECONDS = 60.0
_PARTS = """
import json, subprocess, sys, time
began = time.perf_counter()
parts = {}
def took(name):
    global began
    parts[name] = time.perf_counter() - began
    began = time.perf_counter()
import serving.endpoint
took("imports of the front")
from pathlib import Path
from serving.asked_store import ask_for_releases, ask_for_variant
from serving.variant_cache import VariantCache
began = time.perf_counter()
ask_for_releases()
took("the ledger, by a process that ends")
began = time.perf_counter()
folder, variant = VariantCache(Path(sys.argv[1]), ask_for_variant).fetch(sys.argv[2])
took("check of the cached files")
code = "import serving.engines.engine_nursery"
subprocess.run([sys.executable, "-c", code], check=True)
took("a nursery that has imported everything")
from serving.engines.frame_worker import FrameWorker
from serving.limits import RequestLimits
began = time.perf_counter()
order = {"folder": str(folder), "variant": variant.model_dump(mode="json", by_alias=True), "model": "m", "version": "1"}
FrameWorker(order, RequestLimits())
took("load, warm-up, certificate")
print(json.dumps(parts))
"""


def main() -> int:
    """Run it; see above for the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), default="deep")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--most-seconds", type=float, default=5.0, help="to wait for an answer")
    chosen = parser.parse_args()
    unwind_on_signals()
    model = MODELS[chosen.model]
    ways = ("ledger in S3", "served last, S3 away", "pinned, S3 away")
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    parts: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="winnow-first-") as folder:
        home = Path(folder)
        variant = model.write(home / "files")
        put_into_cache(home / "home", variant, home / "files")
        with s3(home / "s3") as reachable:
            release(reachable, home / "files", variant)
            pinned = {"WINNOW_SERVE": f"{MODEL}/1@{variant.digest}"}
            for _ in range(chosen.rounds):
                for way, environment in zip(ways, (reachable, {}, pinned), strict=True):
                    seconds[way].append(first_answer(home / "home", model, environment, chosen.most_seconds))
                parts.append(parts_of(home / "home", variant, reachable))
    size = sum(file.size for file in variant.files) / 1e6
    print_report(
        f"First answer, a cached model of {size:.1f} MB, {chosen.rounds} times; goal {_GOAL_SECONDS:g} s.",
        ("", "seconds"),
        [(way, spread(found, ".2f")) for way, found in seconds.items()]
        + [(f"- {part}", spread([found[part] for found in parts], ".3f")) for part in parts[0]],
    )
    print(f"\n{float('inf')}: no answer within {chosen.most_seconds:g} s.")
    return int(any(value == float("inf") for way in ways for value in seconds[way]))


@contextmanager
def s3(home: Path) -> Iterator[dict[str, str]]:
    """An S3 server with the buckets of an empty store; what reaches it."""
    home.mkdir(mode=0o700)
    secrets = Secrets()
    component = s3_server(home, Settings(ports={"s3": ports.pick(1)[0]}), secrets)
    daemon = Daemon(component.name, home)
    daemon.start(component)
    try:
        end = time.monotonic() + _S3_SECONDS
        while not component.is_well():
            if time.monotonic() > end:
                raise TimeoutError("\n".join(daemon.tail(30)))
            time.sleep(0.1)
        reachable = {
            "AWS_ACCESS_KEY_ID": secrets.access_key,
            "AWS_SECRET_ACCESS_KEY": secrets.secret_key,
            "AWS_ENDPOINT_URL_S3": component.url,
            "AWS_REGION": "us-east-1",
            "WINNOW_STORE": "s3://first",
        }
        code = "from model_registry.store import Store; Store.from_environment().prepare()"
        subprocess.run([sys.executable, "-c", code], env=outside(reachable), check=True)
        yield reachable
    finally:
        daemon.end(grace=0)
        for left in component.litter:
            left.unlink(missing_ok=True)


def release(environment: dict[str, str], files: Path, variant: Variant) -> None:
    """Put the variant into the store and make it the champion."""
    code = (
        "import sys; from pathlib import Path; from model_registry.ledger import Ledger; "
        "from model_registry.store import Store; from model_registry.variant import Variant; "
        "store = Store.from_environment(); store.publish_folder(Path(sys.argv[1])); "
        "variant = Variant.from_json(sys.stdin.buffer.read()); store.save_variant(variant); ledger = Ledger(store); "
        f"ledger.commit(ledger.begin({MODEL!r}, 1, variant.digest, expected_champion_seq=0))"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(files)], input=variant.to_json(), env=outside(environment), check=True
    )


def first_answer(home: Path, model: ServedModel, environment: dict[str, str], most: float) -> float:
    """Seconds from the start of the process to the first 200; infinite where there is none in time."""
    body, began = model.json_body(), time.monotonic()
    with own_endpoint(home, more=environment) as served:
        while time.monotonic() - began < most:
            try:
                call("POST", served.url, body=body)
            except OSError:
                time.sleep(0.002)
            else:
                return time.monotonic() - began
    return float("inf")


def parts_of(home: Path, variant: Variant, environment: dict[str, str]) -> dict[str, float]:
    """Seconds of each part, in a process that does them one after the other."""
    command = [sys.executable, "-c", _PARTS, str(home / "endpoint-cache"), variant.digest]
    done = subprocess.run(command, env=outside(environment), stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def outside(environment: dict[str, str]) -> dict[str, Any]:
    return {**os.environ, **environment, "PYTHONPATH": str(ROOT)}


if __name__ == "__main__":
    sys.exit(main())
