"""What a newcomer waits for: the set-up, the first run, and a run with nothing new. Wall clock and CPU time.

    python benchmarks/first_minutes.py setup --output setup.json
    python benchmarks/first_minutes.py runs --repeats 3 --against ../another-checkout --output runs.json

`setup` clones this checkout, makes a virtual environment, and times torch's own wheel and `make setup` one by one; uv's
cache is empty, pip's is as it is. `runs` has an embedded stack of its own and takes turns between this checkout and
those it is compared with, all with this Python: a cold run (of a seed that nobody ran before), then the same twice, of
which the last counts. CPU time is that of the command and of all processes it started; the stack's servers do not
count. Target: set-up beside torch under 60 CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent))

from benchmarks.machine_facts import circumstances
from benchmarks.own_stack import OwnStack, own_stack, unwind_on_signals
from infra.stack import Stack

ROOT = Path(__file__).absolute().parent.parent
LIBRARIES = ("prefect", "mlflow", "torch", "numpy", "uv", "winnow-mlops")
SETUP_CPU_SECONDS = 60.0
_ENTRIES = ("flows/commands/cli.py", "flows/cli.py")
"""Where the command line lies, in this checkout and in older ones."""


@dataclass(frozen=True)
class Taken:
    """What a command took, in seconds."""

    wall: float
    user: float
    system: float

    @property
    def cpu(self) -> float:
        return self.user + self.system


def main() -> int:
    """Run the benchmark; exit status 1 where a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("setup", "runs"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--spec", default="tiny")
    parser.add_argument("--against", type=Path, action="append", default=[], metavar="CHECKOUT")
    parser.add_argument("--installer", default="uv", choices=("uv", "pip"))
    parser.add_argument("--output", type=Path, default=Path("first_minutes.json"))
    arguments = parser.parse_args()
    unwind_on_signals()
    result: dict[str, Any] = {"schema": 1, **circumstances(LIBRARIES), "load_before": os.getloadavg()[0]}
    if arguments.what == "setup":
        taken = setup(arguments.installer)
        result["setup"] = {name: asdict(step) for name, step in taken.items()}
        met = taken["the rest"].cpu <= SETUP_CPU_SECONDS
    else:
        result["runs"] = runs(arguments.spec, [ROOT, *arguments.against], arguments.repeats)
        met = True
    result["load_after"] = os.getloadavg()[0]
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    return 0 if met else 1


def setup(installer: str) -> dict[str, Taken]:
    """Seconds of the virtual environment, of torch, and of everything else, in a fresh clone."""
    with tempfile.TemporaryDirectory(prefix="winnow-setup-") as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")}
        environment["UV_CACHE_DIR"] = str(Path(folder) / "uv")
        (torch,) = [x for x in (clone / "requirements.lock").read_text().splitlines() if x.startswith("torch==")]
        pip = [".venv/bin/python", "-m", "pip", "--quiet", "install", "--no-compile"]
        base = getattr(sys, "_base_executable", sys.executable)
        return {
            "virtual environment": timed([base, "-m", "venv", ".venv"], clone, environment)[0],
            "torch": timed([*pip, torch], clone, environment)[0],
            "the rest": timed(["make", "setup", f"PYTHON={base}", f"INSTALLER={installer}"], clone, environment)[0],
        }


def runs(spec: str, checkouts: Sequence[Path], repeats: int) -> dict[str, Any]:
    """Per checkout: every run's seconds, and the medians of cold and reused ones."""
    taken: dict[str, dict[str, list[Taken]]] = {str(one): {"cold": [], "reused": []} for one in checkouts}
    with tempfile.TemporaryDirectory(prefix="winnow-bench-") as name, own_stack(Path(name) / ".winnow") as stack:
        for repeat in range(repeats):
            for number, checkout in enumerate(checkouts):
                seed = 1000 + repeat * len(checkouts) + number
                cold, report = one_run(checkout, spec, seed, stack)
                again = {line["name"] for line in report["stages"] if line["status"] == "reused"}
                if {"data", "train"} & again:
                    raise SystemExit(f"seed {seed} was run before: {sorted(again)} were reused")
                one_run(checkout, spec, seed, stack)  # the champion has changed: it is validated against itself, once
                reused, _ = one_run(checkout, spec, seed, stack)
                taken[str(checkout)]["cold"].append(cold)
                taken[str(checkout)]["reused"].append(reused)
                print(checkout, seed, "cold", cold, "reused", reused, file=sys.stderr)
    return {
        checkout: {
            kind: {
                "median wall": round(statistics.median(one.wall for one in found), 2),
                "median cpu": round(statistics.median(one.cpu for one in found), 2),
                "all": [asdict(one) for one in found],
            }
            for kind, found in kinds.items()
        }
        for checkout, kinds in taken.items()
    }


def one_run(checkout: Path, spec: str, seed: int, stack: OwnStack) -> tuple[Taken, dict[str, Any]]:
    """What one run took, and its report."""
    entry = next(name for name in _ENTRIES if (checkout / name).is_file())
    module = entry.removesuffix(".py").replace("/", ".")
    environment = {**stack.environment, **Stack(stack.home).environment(), "PYTHONPATH": str(checkout.absolute())}
    settings = ("--set", f"seed={seed}", "--set", f"workload.arguments.seed={seed}")  # the latter divides the rows
    command = [sys.executable, "-P", "-m", module, "run", spec, *settings, "--json"]
    taken, said = timed(command, stack.home.parent, environment)
    return taken, json.loads(said)


def timed(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> tuple[Taken, str]:
    """What the command and all that it started took, and its standard output; ends the benchmark where it fails."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return Taken(wall, after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime), done.stdout


if __name__ == "__main__":
    sys.exit(main())
