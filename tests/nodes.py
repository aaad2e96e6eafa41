"""Nodes of the Ray cluster that tests run beside them, and how one is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Any

import psutil

from tasks.running import ray_nodes


def kill_node(number: str, *, workers: bool = True) -> None:
    """Kill a node's raylet.

    Args:
        workers: and what it started; else its workers live on for a while, and may finish what they were asked.
    """
    import ray

    (node,) = (n for n in ray.nodes() if n["NodeID"] == number)
    raylet = _raylet_of(node)
    assert raylet is not None, f"no raylet of node {number}"
    started = raylet.children(recursive=True) if workers else []
    for process in (raylet, *started):
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(process.pid, signal.SIGKILL)


def running_nodes() -> list[str]:
    """Numbers of the nodes that offer cores and run; Ray takes a while to notice that one was killed."""
    import ray

    return [n["NodeID"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU") and _raylet_of(n)]


def kill_one_at_work(*, workers: bool = True) -> str:
    """Kill a node that works for us; its number."""
    number = next(node for node in running_nodes() if ray_nodes.busy.get(node))
    kill_node(number, workers=workers)
    return number


def _raylet_of(node: dict[str, Any]) -> psutil.Process | None:
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or [""]
        port = f"--node_manager_port={node['NodeManagerPort']}"
        if line[0].endswith("raylet") and (port in line or node["NodeID"] in " ".join(line)):
            return process
    return None


def on_nodes(module: str) -> list[str]:
    """Command lines of the processes that run the module and were started on a node."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            line = " ".join(process.info["cmdline"] or [])
            if f"-m {module}" in line and "RAY_RAYLET_PID" in process.environ():
                found.append(line)
    return found


def left_of(module: str) -> list[str]:
    """The same, once they had a moment to end."""
    for _ in range(40):
        if not on_nodes(module):
            break
        time.sleep(0.25)
    return on_nodes(module)
