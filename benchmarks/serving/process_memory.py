"""Memory of processes as Linux tells it: pages that several share count in parts (PSS), so that sums are right."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

_HEAD = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+\s*(.*)")
_MB = 1024.0
"""KiB in a MB, near enough."""


def pss_mb(pid: int) -> float:
    """Its share of all pages it uses; 0 where it is gone."""
    return sum(_rollup(pid, ("Pss",)).values())


def uss_mb(pid: int) -> float:
    """Pages that no other process has; 0 where it is gone."""
    return sum(_rollup(pid, ("Private_Clean", "Private_Dirty")).values())


def pss_by_mapping(pid: int) -> Counter[str]:
    """KiB by what the pages are: a file's name, ``heap and anonymous``, or what Linux calls it."""
    found, name = Counter[str](), ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if line.startswith("Pss:"):
            found[name] += int(line.split()[1])
        elif head := _HEAD.fullmatch(line):
            path = head[1]
            anonymous = not path or path == "[heap]" or path.startswith("[anon")
            name = "heap and anonymous" if anonymous else path.rpartition("/")[2]
    return found


def _rollup(pid: int, wanted: tuple[str, ...]) -> dict[str, float]:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except (FileNotFoundError, ProcessLookupError):
        return {}
    values = {line.partition(":")[0]: int(line.split()[1]) / _MB for line in lines}
    return {name: values[name] for name in wanted}
