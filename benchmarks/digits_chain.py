"""How long the digits chain takes, and how much of it is not the algorithms.

    python benchmarks/digits_chain.py --repeats 3 --output digits_chain.json

Each repeat has an embedded stack of its own in a fresh folder on free ports (`winnow up` is timed, but counted
nowhere), then a cold run and a run that reuses everything, both as a person starts them: `winnow run digits`, process
start included. Targets: a cold chain under 180 s on 2 cores; overhead (wall time less the algorithms) at most 20 s plus
1.5 s per computed stage; a reused run under 15 s.

The algorithms' time is what their child processes took, start and imports included, from the stage records. Where
stages ran side by side their union counts, not their sum, so that overlap does not flatter the overhead.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent))

from benchmarks.machine_facts import circumstances
from benchmarks.own_stack import WINNOW, OwnStack, own_stack, unwind_on_signals
from infra.stack import Stack
from model_registry.store import Store

LIBRARIES = ("prefect", "mlflow", "torch", "onnxruntime", "great-expectations", "numpy", "winnow-mlops")
COLD_SECONDS, REUSED_SECONDS = 180.0, 15.0
OVERHEAD_SECONDS, OVERHEAD_PER_STAGE = 20.0, 1.5


def main() -> int:
    """Run the benchmark; exit status 1 where a target was missed in the median."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--spec", default="digits")
    parser.add_argument("--output", type=Path, default=Path("digits_chain.json"))
    arguments = parser.parse_args()
    unwind_on_signals()
    result: dict[str, Any] = {
        "schema": 1,
        "spec": arguments.spec,
        **circumstances(LIBRARIES),
        "load_before": os.getloadavg()[0],
    }
    print(json.dumps(result, indent=2))
    result["repeats"] = [one_repeat(arguments.spec, number) for number in range(1, arguments.repeats + 1)]
    result["summary"] = summary(result["repeats"])
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["summary"], indent=2))
    return 0 if all(result["summary"]["met"].values()) else 1


def one_repeat(spec: str, number: int) -> dict[str, Any]:
    """A fresh stack, a cold run, a reused run."""
    with fresh_stack() as stack:
        cold, cold_seconds = run(spec, stack)
        intervals = stage_intervals(cold["run_id"], stack)
        reused, reused_seconds = run(spec, stack)
    computed = [s["name"] for s in cold["stages"] if s["status"] == "computed"]
    again = [s["name"] for s in reused["stages"] if s["status"] == "computed" and s["name"] in intervals]
    algorithms = union(intervals.values())
    measured = {
        "up_seconds": stack.up_seconds,
        "cold_seconds": cold_seconds,
        "algorithm_seconds": algorithms,
        "algorithm_seconds_sum": sum(end - start for start, end in intervals.values()),
        "overhead_seconds": cold_seconds - algorithms,
        "overhead_target": OVERHEAD_SECONDS + OVERHEAD_PER_STAGE * len(computed),
        "reused_seconds": reused_seconds,
        "stages_computed": len(computed),
        "stages_computed_again": again,
        "status": [cold["status"], reused["status"]],
        "stages": {name: round(end - start, 2) for name, (start, end) in intervals.items()},
    }
    print(f"repeat {number}: " + json.dumps({k: v for k, v in measured.items() if k != "stages"}))
    return measured


@contextmanager
def fresh_stack() -> Iterator[OwnStack]:
    """A stack in a fresh folder; nothing is left of it."""
    with tempfile.TemporaryDirectory(prefix="winnow-bench-") as name, own_stack(Path(name) / ".winnow") as stack:
        yield stack


def run(spec: str, stack: OwnStack) -> tuple[dict[str, Any], float]:
    """The report of one run, and its wall time as a person sees it."""
    began = time.monotonic()
    done = subprocess.run(
        [WINNOW, "run", spec, "--json"],
        cwd=stack.home.parent,
        env=stack.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - began
    if done.returncode:
        raise SystemExit(
            f"winnow run {spec} ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
    report: dict[str, Any] = json.loads(done.stdout)
    return report, seconds


def stage_intervals(run_id: str, stack: OwnStack) -> dict[str, tuple[float, float]]:
    """When each stage of the run computed: it ended when its record was written (to the second), and took so long."""
    os.environ.update(Stack(stack.home).environment())
    store = Store.from_environment()
    found = {}
    for key in store.list_records("stages/"):
        record = json.loads(store.read_record(key) or b"{}")
        if record.get("run_id") == run_id:
            head = store.client.head_object(Bucket=store.records_bucket, Key=key)
            end = head["LastModified"].timestamp()
            found[record["name"]] = (end - record["compute_seconds"], end)
    return found


def union(intervals: Any) -> float:
    """Seconds covered by at least one of the intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def summary(repeats: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Median and range of each number, and which targets the medians meet."""
    names = ("up_seconds", "cold_seconds", "algorithm_seconds", "overhead_seconds", "reused_seconds")
    found: dict[str, Any] = {
        name: {
            "median": round(statistics.median(r[name] for r in repeats), 2),
            "lowest": round(min(r[name] for r in repeats), 2),
            "highest": round(max(r[name] for r in repeats), 2),
        }
        for name in names
    }
    target = statistics.median(r["overhead_target"] for r in repeats)
    found["met"] = {
        f"cold chain under {COLD_SECONDS:g} s": found["cold_seconds"]["median"] < COLD_SECONDS,
        f"overhead at most {target:g} s": found["overhead_seconds"]["median"] <= target,
        f"reused run under {REUSED_SECONDS:g} s": found["reused_seconds"]["median"] < REUSED_SECONDS,
        "nothing computed again": not any(r["stages_computed_again"] for r in repeats),
    }
    return found


if __name__ == "__main__":
    sys.exit(main())
