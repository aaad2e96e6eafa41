"""What the benchmarks of the endpoint print: one Markdown table, and under which circumstances it was measured."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Sequence

from benchmarks.machine_facts import circumstances

LIBRARIES = ("onnxruntime", "numpy", "orjson", "uvloop", "httptools", "pysimdjson", "winnow-mlops")


def print_report(title: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """The table, below its title and the hardware, threads, versions and load of the machine."""
    facts = circumstances(LIBRARIES)
    hardware = facts["hardware"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    memory, load = hardware["memory_bytes"] / 2**30, os.getloadavg()[0]
    print(f"\n**{title}** {facts['date']}, {hardware['cpu']}, {hardware['cores']} cores, one thread per engine,")
    print(f"{memory:.0f} GiB, load average {load:.1f}; Python {facts['python']}, {versions}\n")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")


def spread(values: Sequence[float], form: str = ".3g") -> str:
    """Median, and the lowest and the highest where there are several."""
    if len(values) == 1:
        return format(values[0], form)
    return f"{statistics.median(values):{form}} [{min(values):{form}}-{max(values):{form}}]"
