"""Swaps of versions, and kills of processes, while requests arrive at a fixed rate: what is lost, wrong, or late.

    python benchmarks/serving/hot_swaps.py --swaps 100
    python benchmarks/serving/hot_swaps.py --kill --seconds 20

A swap is what a release does on the admin listener: load the next version, give it the traffic, unload the one before.
Two variants take turns; what they answer is their number, so that each answer shows whether the version that it names
made it, and whether that one still had the traffic when the request was sent. ``--kill`` ends an engine each second
(``kill -9``), and then the front, which is started again and given its version by hand. A request's time counts from
when it was due. Exit status 1 where a request was lost or answered wrongly, but for those that the front's death cost.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent.parent))

import orjson
import uvloop

from benchmarks.own_stack import unwind_on_signals
from benchmarks.serving.open_loop import LoadClient, Shot, http_request, quantile
from benchmarks.serving.own_endpoint import MODEL, OwnEndpoint, own_endpoint, put_into_cache, until
from benchmarks.serving.serving_models import MODELS
from benchmarks.serving.serving_report import print_report
from model_registry.variant import Variant

_PATH = f"/v2/models/{MODEL}/infer"
_LONGEST_SECONDS = 170.0
"""After which no further swap is begun."""


@dataclass
class Turns:
    """Who had the traffic: by version, when it was asked for and when that was done, by the monotonic clock."""

    asked: dict[int, float] = field(default_factory=dict)
    done: dict[int, float] = field(default_factory=dict)

    def wrong(self, shot: Shot) -> bool:
        """Whether an answer is not from the version that it names, or from one that did not have the traffic."""
        answer = orjson.loads(shot.body)
        version, found = int(answer["model_version"]), set(answer["outputs"][0]["data"])
        if found != {float(version % 2)} or version not in self.asked:
            return True
        late = self.done.get(version + 1, float("inf")) < shot.due
        return late or self.asked[version] > shot.ended


@dataclass(frozen=True)
class Phase:
    """A time of the run."""

    name: str
    shots: Sequence[Shot]
    events: int = 0
    faults: Sequence[str] = ()

    @property
    def lost(self) -> int:
        return sum(shot.status != 200 for shot in self.shots)

    def row(self, wrong: int) -> tuple[object, ...]:
        """For the table."""
        seconds = [shot.seconds for shot in self.shots if shot.status == 200]
        times = [f"{1e3 * quantile(seconds, share):.2f}" for share in (0.5, 0.99, 1.0)]
        return (self.name, self.events, len(self.shots), self.lost, wrong, *times)


def main() -> int:
    """Run it; see above for the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), default="cnn")
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second")
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--pause", type=float, default=0.2, help="seconds between swaps")
    parser.add_argument("--seconds", type=float, default=15.0, help="of the steady states, and of the kills")
    parser.add_argument("--kill", action="store_true", help="kill engines and the front instead")
    chosen = parser.parse_args()
    unwind_on_signals()
    with tempfile.TemporaryDirectory(prefix="winnow-swaps-") as folder, ExitStack() as stack:
        home = Path(folder)
        variants = [numbered(home, chosen.model, number) for number in (0, 1)]
        served = stack.enter_context(own_endpoint(home / "home"))
        served.serve(variants[1])
        gc.freeze()
        gc.disable()  # pauses of ours are not the endpoint's
        turns = Turns({1: 0.0}, {1: 0.0})
        if chosen.kill:
            phases = uvloop.run(kills(stack, served, home / "home", variants[1], chosen))
        else:
            phases = uvloop.run(swaps(served, variants, turns, chosen))
    wrong = [sum(turns.wrong(shot) for shot in phase.shots if shot.status == 200) for phase in phases]
    show(phases, wrong, chosen)
    return int(any(wrong) or any(phase.lost for phase in phases if phase.name != "front killed"))


def numbered(home: Path, model: str, number: int) -> Variant:
    """The model that answers its number, in the endpoint's cache."""
    files = home / f"{model}-{number}"
    variant = MODELS[model].write(files, number)
    put_into_cache(home / "home", variant, files)
    return variant


def client_of(served: OwnEndpoint, chosen: argparse.Namespace) -> LoadClient:
    return LoadClient(served.port, [http_request(_PATH, MODELS[chosen.model].json_body())], keep=True)


async def swaps(
    served: OwnEndpoint, variants: Sequence[Variant], turns: Turns, chosen: argparse.Namespace
) -> list[Phase]:
    """Steady, swaps, steady."""
    before = await client_of(served, chosen).open_loop(chosen.rate, chosen.seconds)
    end = time.monotonic() + _LONGEST_SECONDS - 2 * chosen.seconds
    load = Unbounded(client_of(served, chosen), chosen.rate)
    done = 0
    for version in range(2, chosen.swaps + 2):
        if time.monotonic() > end:
            break
        await asyncio.to_thread(served.load, version, variants[version % 2])
        turns.asked[version] = time.monotonic()
        await asyncio.to_thread(served.give_traffic, version)
        turns.done[version] = time.monotonic()
        await asyncio.to_thread(served.unload, version - 1)
        done += 1
        await asyncio.sleep(chosen.pause)
    during = await load.stop()
    after = await client_of(served, chosen).open_loop(chosen.rate, chosen.seconds)
    faults = [] if done == chosen.swaps else [f"{done} of {chosen.swaps} swaps in the time there was"]
    return [Phase("steady", before), Phase("swaps", during, done, faults), Phase("steady again", after)]


class Unbounded:
    """An open loop for as long as something else lasts."""

    def __init__(self, client: LoadClient, rate: float) -> None:
        self._client, self._rate, self._stopped = client, rate, False
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> list[Shot]:
        self._stopped = True
        return await self._task

    async def _run(self) -> list[Shot]:
        return await self._client.open_loop(self._rate, until=lambda: self._stopped)


async def kills(
    stack: ExitStack, served: OwnEndpoint, home: Path, variant: Variant, chosen: argparse.Namespace
) -> list[Phase]:
    """Steady, engines killed, the front killed."""
    draw = random.Random(0)
    steady = await client_of(served, chosen).open_loop(chosen.rate, chosen.seconds)
    load = Unbounded(client_of(served, chosen), chosen.rate)
    count, single = 0, 0
    for count in itertools.count(1):
        engines = await asyncio.to_thread(served.engines)
        single += len(engines) < 2
        os.kill(draw.choice(engines), signal.SIGKILL)
        await asyncio.sleep(1)
        if count >= chosen.seconds:
            break
    engines_killed = await load.stop()
    faults = [f"at {single} of the kills there was one engine"] if single else []
    load = Unbounded(client_of(served, chosen), chosen.rate)
    await asyncio.sleep(1)
    died = time.monotonic()
    served.process.kill()
    again = stack.enter_context(own_endpoint(home, ports=(served.port, served.admin_port)))
    await asyncio.to_thread(until, lambda: again.load(1, variant), pause=0.01)
    await asyncio.to_thread(again.give_traffic, 1)
    back = time.monotonic()
    await asyncio.sleep(1)
    front_killed = await load.stop()
    in_flight = sum(shot.status == 0 and shot.due < died for shot in front_killed)
    refused = sum(shot.status != 200 and shot.due >= died for shot in front_killed)
    said = f"the front was away for {back - died:.2f} s: {in_flight} in flight were lost, {refused} later ones refused"
    return [
        Phase("steady", steady),
        Phase("engines killed", engines_killed, count, faults),
        Phase("front killed", front_killed, 1, [said]),
    ]


def show(phases: Sequence[Phase], wrong: Sequence[int], chosen: argparse.Namespace) -> None:
    """The table, and how the second phase compares with the steady ones."""
    print_report(
        f"{'Kills' if chosen.kill else 'Hot swaps'} at {chosen.rate:g} requests/s ({chosen.model}, JSON).",
        ("phase", "events", "requests", "lost", "wrong", "p50 ms", "p99 ms", "max ms"),
        [phase.row(count) for phase, count in zip(phases, wrong, strict=True)],
    )
    steady = [shot.seconds for phase in phases if phase.name.startswith("steady") for shot in phase.shots]
    other = [shot.seconds for shot in phases[1].shots if shot.status == 200]
    ratio = quantile(other, 0.99) / quantile(steady, 0.99)
    print(f"\np99 of {phases[1].name} is {ratio:.2f} times that of the steady state.")
    for phase in phases:
        for fault in phase.faults:
            print(f"{phase.name}: {fault}.")


if __name__ == "__main__":
    sys.exit(main())
