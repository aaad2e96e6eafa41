"""Three times as many requests as the endpoint can answer: what is answered, when, and how soon the rest is refused.

    python benchmarks/serving/overload.py --rounds 3 --seconds 5

Each round first finds the peak by a closed loop, then sends a multiple of it at a fixed rate: without a timeout, with
``timeout`` in the bodies, and with a cheaper variant beside as well (a set). A request's time counts from when it was
due. ``good`` are answers within the timeout. The generator takes its CPU time from the same cores. Exit status 1 where
a request got no answer, or one that is neither an answer nor a refusal.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

sys.path.append(str(Path(__file__).parent.parent.parent))

import orjson
import uvloop

from benchmarks.own_stack import unwind_on_signals
from benchmarks.serving.open_loop import LoadClient, http_request, quantile
from benchmarks.serving.own_endpoint import MODEL, OwnEndpoint, cpu_seconds, own_endpoint, put_into_cache
from benchmarks.serving.serving_models import MODELS
from benchmarks.serving.serving_report import print_report, spread
from model_registry.variant import Variant

_PATH = f"/v2/models/{MODEL}/infer"
_MODEL, _CHEAPER = "deep", "shallow"
"""Of which a row takes milliseconds: those that take microseconds are served faster than a generator in Python asks."""
_REFUSALS = (503, 504)


class Peak(NamedTuple):
    """Answers per second, and per CPU second of the engines."""

    rate: float
    for_cpu: float


@dataclass(frozen=True)
class Flood:
    """An open loop against a server that cannot keep up; seconds and shares.

    ``cores``: that the generator, the front and the engines kept busy; ``yields``: good answers for the engines' CPU
    time, of what the peak had for it. It is 1 where nothing was computed in vain, whoever else uses the cores.
    """

    how: str
    share: float
    accepted: tuple[float, float]
    refused: tuple[float, float]
    statuses: Counter[int]
    degraded: float
    cores: tuple[float, float, float]
    yields: float

    @property
    def wrong(self) -> int:
        """Requests without an answer, or with one that should not be."""
        return sum(n for status, n in self.statuses.items() if status not in (200, *_REFUSALS))


def main() -> int:
    """Run it; see above for the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each open loop")
    parser.add_argument("--times", type=float, default=3.0, help="the peak")
    parser.add_argument("--timeout-ms", type=float, default=200.0)
    parser.add_argument("--connections", type=int, default=32, help="of the closed loop")
    chosen = parser.parse_args()
    unwind_on_signals()
    with tempfile.TemporaryDirectory(prefix="winnow-overload-") as folder:
        home = Path(folder)
        variants = [written(home, name) for name in (_MODEL, _CHEAPER)]
        with own_endpoint(home / "home") as served:
            served.serve(variants[0])
            gc.freeze()
            gc.disable()  # pauses of ours are not the endpoint's
            peaks, floods = uvloop.run(measure(served, variants, chosen))
    show(peaks, floods, chosen)
    return int(any(flood.wrong for flood in floods))


def written(home: Path, name: str) -> Variant:
    """The model, in the endpoint's cache."""
    variant = MODELS[name].write(home / name)
    put_into_cache(home / "home", variant, home / name)
    return variant


async def measure(
    served: OwnEndpoint, variants: Sequence[Variant], chosen: argparse.Namespace
) -> tuple[list[float], list[Flood]]:
    """All rounds: the peaks, and the floods with theirs."""
    body, timeout = MODELS[_MODEL].json_body(), int(1e3 * chosen.timeout_ms)
    told = orjson.dumps({**orjson.loads(body), "parameters": {"timeout": timeout}})
    plain = http_request(_PATH, body)
    ways = {
        "no timeout": plain,
        "timeout": http_request(_PATH, told),
        "timeout, set": http_request(_PATH, told),
    }
    peaks, floods = list[float](), list[Flood]()
    for _ in range(chosen.rounds):
        for how, request in ways.items():
            client, spent, began = LoadClient(served.port, [plain]), spent_cpu(served), time.monotonic()
            shots = await client.closed_loop(chosen.connections, chosen.seconds / 2)
            good = sum(shot.status == 200 for shot in shots)
            peak = Peak(good / (time.monotonic() - began), good / (spent_cpu(served)[2] - spent[2]))
            client.close()
            peaks.append(peak.rate)
            await asyncio.to_thread(beside, served, variants, wanted="set" in how)
            deadline = float("inf") if how == "no timeout" else chosen.timeout_ms / 1e3
            floods.append(await flood(served, how, request, peak, deadline, chosen))
            await asyncio.to_thread(beside, served, variants, wanted=False)
    return peaks, floods


async def flood(
    served: OwnEndpoint, how: str, request: bytes, peak: Peak, deadline: float, chosen: argparse.Namespace
) -> Flood:
    """One open loop at a multiple of the peak."""
    rate, seconds = chosen.times * peak.rate, chosen.seconds
    client = LoadClient(served.port, [request], keep=True)
    spent, began = spent_cpu(served), time.monotonic()
    shots = await client.open_loop(rate, seconds)
    took = time.monotonic() - began
    generator, front, engines = (
        (after - before) / took for before, after in zip(spent, spent_cpu(served), strict=True)
    )
    accepted = [shot for shot in shots if shot.status == 200]
    in_time = [shot for shot in accepted if shot.seconds <= deadline]
    good = [shot for shot in in_time if shot.ended <= began + seconds]
    refused = [shot.seconds for shot in shots if shot.status in _REFUSALS]
    print(f"{how}: {len(good) / seconds:.0f}/s of {rate:.0f}/s", file=sys.stderr, flush=True)
    return Flood(
        how,
        len(good) / seconds / peak.rate,
        halves([shot.seconds for shot in accepted]),
        halves(refused),
        Counter(shot.status for shot in shots),
        sum(b"winnow-choice: degraded" in shot.head for shot in accepted) / max(1, len(accepted)),
        (generator, front, engines),
        len(in_time) / (engines * took) / peak.for_cpu,
    )


def spent_cpu(served: OwnEndpoint) -> tuple[float, float, float]:
    """CPU seconds of this process, of the front, and of all processes that it started."""
    front, whole = served.process.cpu_times(), cpu_seconds(served.process)
    return time.process_time(), front.user + front.system, whole - front.user - front.system


def halves(seconds: Sequence[float]) -> tuple[float, float]:
    """p50 and p99."""
    return quantile(seconds, 0.5), quantile(seconds, 0.99)


def beside(served: OwnEndpoint, variants: Sequence[Variant], *, wanted: bool) -> None:
    """Serve both variants as a set, or the first alone."""
    if wanted:
        served.load(2, variants[1])
        members = [
            {
                "version": number,
                "digest": variant.digest,
                "name": f"variant-{number}",
                "metric": "accuracy",
                "better": "higher",
                "value": 1 - number / 100,
                "p50_ms": 10.0 / number,
                "bytes": sum(file.size for file in variant.files),
            }
            for number, variant in enumerate(variants, 1)
        ]
        served.admin("PUT", f"/{MODEL}/set", {"members": members})
    elif any(v["version"] == "2" for m in served.admin("GET", "")["models"] for v in m["versions"]):
        served.unload(2)


def show(peaks: Sequence[float], floods: Sequence[Flood], chosen: argparse.Namespace) -> None:
    """Medians and spread."""
    rows = []
    for how in dict.fromkeys(flood.how for flood in floods):
        found = [flood for flood in floods if flood.how == how]
        statuses = sum((flood.statuses for flood in found), Counter[int]())
        rows.append(
            (
                how,
                spread([flood.share for flood in found], ".2f"),
                spread([flood.yields for flood in found], ".2f"),
                *(spread([1e3 * flood.accepted[i] for flood in found], ".0f") for i in (0, 1)),
                *(spread([1e3 * flood.refused[i] for flood in found], ".0f") for i in (0, 1)),
                spread([flood.degraded for flood in found], ".2f"),
                ", ".join(f"{status}: {count}" for status, count in sorted(statuses.items())),
                " / ".join(f"{statistics.median(flood.cores[i] for flood in found):.2f}" for i in range(3)),
            )
        )
    print_report(
        f"Overload at {chosen.times:g} times the peak of {spread(peaks, '.0f')} answers/s ({_MODEL}, timeout "
        f"{chosen.timeout_ms:g} ms, {chosen.rounds} rounds of {chosen.seconds:g} s).",
        (
            "timeout",
            "good, of peak",
            "for engines' CPU time, of peak",
            "accepted p50 ms",
            "p99",
            "refused p50 ms",
            "p99",
            "degraded",
            "statuses",
            "cores: generator / front / engines",
        ),
        rows,
    )


if __name__ == "__main__":
    sys.exit(main())
