"""How many cores this process may use: what it is bound to, and what its container is allowed of them."""

from __future__ import annotations

import os
from pathlib import Path


def usable_cores(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """At least 1. A limit such as ``docker --cpus`` or Kubernetes' binds no process to cores: it is a share of time.

    Args:
        cgroups: where the kernel shows control groups (version 2; others are passed over).
        own: which of them this process is in.
    """
    cores = float(len(os.sched_getaffinity(0)))
    try:
        place = next(line[3:].strip("/\n") for line in own.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return int(cores)
    group = cgroups / place
    for folder in (group, *group.parents):
        if not folder.is_relative_to(cgroups):
            break
        try:
            quota, period = (folder / "cpu.max").read_text().split()
        except (OSError, ValueError):  # the topmost group has none
            continue
        if quota != "max":
            cores = min(cores, int(quota) / int(period))
    return max(1, int(cores))
