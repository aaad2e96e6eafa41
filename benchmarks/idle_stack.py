"""What the embedded stack takes while nobody uses it: ``python benchmarks/idle_stack.py [--seconds 60]``.

CPU time of each component, its own processes and those below them, as a share of one core, on a stack of its own.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))

import psutil

from benchmarks.own_stack import own_stack, unwind_on_signals

_SETTLING = 45.0
_PARTS = {"weed": "S3 server", "mlflow": "MLflow", "prefect server": "Prefect server", "prefect worker": "worker"}


def main() -> int:
    """Print a line per component."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of watching")
    seconds = parser.parse_args().seconds
    unwind_on_signals()
    with tempfile.TemporaryDirectory(prefix="winnow-idle-") as folder, own_stack(Path(folder) / "home", keep=False):
        time.sleep(_SETTLING)
        before, began = _cpu_seconds(folder), time.monotonic()
        time.sleep(seconds)
        after, took = _cpu_seconds(folder), time.monotonic() - began
    shares = {part: 100 * (after[part] - before.get(part, 0.0)) / took for part in after}
    for part, share in sorted(shares.items(), key=lambda item: -item[1]):
        print(f"{part:<18}{share:6.2f} % of a core")
    print(f"{'all':<18}{sum(shares.values()):6.2f} % of a core")
    return 0


def _cpu_seconds(folder: str) -> dict[str, float]:
    """CPU seconds by component so far of every process whose environment names the folder."""
    found: dict[str, float] = {}
    for process in psutil.process_iter(["cmdline", "environ", "cpu_times"]):
        command, environment = process.info["cmdline"] or [], process.info["environ"] or {}
        if process.pid != psutil.Process().pid and any(folder in value for value in environment.values()):
            text = " ".join(command)
            part = next((title for word, title in _PARTS.items() if word in text), "endpoint and others")
            found[part] = found.get(part, 0.0) + process.info["cpu_times"].user + process.info["cpu_times"].system
    return found


if __name__ == "__main__":
    sys.exit(main())
