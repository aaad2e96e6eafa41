"""Nodes of the Ray cluster that tests run beside them, and how one is lost."""

from __future__ import annotations

import os
import signal

import psutil


def kill_node(number: str, *, workers: bool = True) -> None:
    """Kill a node's raylet.

    Args:
        workers: and what it started; else its workers live on for a while, and may finish what they were asked.
    """
    import ray

    (node,) = (n for n in ray.nodes() if n["NodeID"] == number)
    raylet = psutil.Process(_raylet_of(node["NodeID"], node["NodeManagerPort"]))
    started = raylet.children(recursive=True) if workers else []
    for process in (raylet, *started):
        os.kill(process.pid, signal.SIGKILL)


def _raylet_of(number: str, port: int) -> int:
    for sign in (f"--node_manager_port={port}", number):
        for process in psutil.process_iter(["cmdline"]):
            line = process.info["cmdline"] or []
            if line and line[0].endswith("raylet") and sign in " ".join(line):
                return int(process.pid)
    raise AssertionError(f"no raylet of node {number}")
