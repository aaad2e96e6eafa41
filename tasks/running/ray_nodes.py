"""Nodes of a Ray cluster whose results would be those of this machine, and objects of ours on them."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import platform
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model_registry.cpu_class import cpu_class, machine_name
from tasks.running.errors import SpecError
from tasks.running.source_hash import closure_hash

_log = logging.getLogger("winnow.ray")
_FIND_SECONDS = 60.0
"""For a node to answer the first question; a worker there imports Winnow."""


@dataclass(frozen=True)
class Surroundings:
    """What must be the same on a node as here, or its results would be others."""

    python: str
    machine: str
    code: str
    """Hash of Winnow's own code."""
    workload: str
    """Hash of the user's, or why it is not there."""
    name: str = ""
    """What the machine is called; of those that only compute it may be any."""

    @classmethod
    def here(cls, module: str, folder: str | None) -> Surroundings:
        """Of this process.

        Args:
            module, folder: where the workload's class is.
        """
        top = module.partition(".")[0]
        there = folder is not None and any(Path(folder, name).exists() for name in (top, f"{top}.py"))
        try:
            known = there or importlib.util.find_spec(top) is not None
            workload = closure_hash(module, folder) if known else f"not there: no module {module}"
        except Exception as error:  # noqa: BLE001 - a user's package may be broken in any way
            workload = f"{type(error).__name__}: {error}"
        version = platform.python_version_tuple()
        return cls(".".join(version[:2]), cpu_class(), closure_hash("tasks.running.child"), workload, machine_name())

    def differences(self, other: Surroundings) -> list[str]:
        """In words, of another's against these."""
        named = {
            "python": "Python",
            "machine": "class of CPU",
            "code": "Winnow's code",
            "workload": "the workload's code",
        }
        ours, theirs = asdict(self), asdict(other)
        return [
            f"{text} is {theirs[key]} and not {ours[key]}" for key, text in named.items() if ours[key] != theirs[key]
        ]


@dataclass(frozen=True)
class Node:
    """A node that may be given work."""

    id: str
    address: str
    cores: int


class NodeLost(Exception):
    """The node is gone, or what was on it."""


class OnNode:
    """An object on a node, in a process of its own that ends with the node. What its methods take and give is text or
    numbers.

    Args:
        kind: its class, which the node imports; made without arguments.
    """

    def __init__(self, node: Node, kind: type) -> None:
        self.node, self._ended = node, False
        self._actor = _start(_connected(), node, kind)
        with _lock:
            busy[node.id] = busy.get(node.id, 0) + 1

    def begin(self, method: str, *arguments: Any) -> Any:
        """Ask without waiting; what :meth:`answer` is asked with."""
        return getattr(self._actor, method).remote(*arguments)

    def ready(self, asked: Any, seconds: float) -> bool:
        """Whether there is an answer, or none will come, waiting so long for it."""
        ready, _ = _connected().wait([asked], timeout=seconds)
        return bool(ready)

    def answer(self, asked: Any, seconds: float | None = None) -> Any:
        """The answer, as it comes; a node that says nothing for so long counts as lost.

        Raises:
            NodeLost: the node is gone, or this object on it.
        """
        ray = _connected()
        try:
            return ray.get(asked, timeout=seconds)
        except ray.exceptions.RayTaskError:  # the method's own
            raise
        except ray.exceptions.RayError as error:  # dead, out of memory, not to be placed where it is bound to
            raise NodeLost(f"node {self.node.address}: {error}") from error

    def end(self) -> None:
        """End its process, and what that has started; whoever waits for an answer hears that it is lost."""
        with _lock:
            if self._ended:
                return
            self._ended = True
            busy[self.node.id] -= 1
        with contextlib.suppress(Exception):  # it is gone already
            _connected().kill(self._actor)


class _Asked:
    """Tells of a node."""

    def facts(self, module: str, folder: str | None) -> str:
        """The node's Surroundings, as JSON."""
        return json.dumps(asdict(Surroundings.here(module, folder)))


def require_cluster() -> None:
    """Refuse ``place: ray`` where there is no cluster to be reached; called before anything is computed.

    Raises:
        SpecError: Ray is not installed, or no cluster answers.
    """
    if importlib.util.find_spec("ray") is None:
        raise SpecError("place: ray needs Ray, which is not installed: pip install 'winnow-mlops[ray]'")
    _connected()


busy: dict[str, int] = {}
"""Objects of this process by node."""
_lock = threading.Lock()
_known: dict[tuple[str, str, str | None], Surroundings] = {}
"""By node and workload: asked once."""
_silent: dict[tuple[str, str, str | None], tuple[float, str]] = {}
"""The same of those that did not answer: when, and why."""
_told: set[str] = set()
"""Reasons that were given already."""


def usable_nodes(
    module: str, folder: str | None, *, without: Sequence[str] = (), machines: str | None = None
) -> list[Node]:
    """The nodes whose results would be those of this machine.

    Args:
        module, folder: where the code is that is to run there, beside Winnow's own.
        without: numbers of nodes that are not to be asked, for they were lost.
        machines: only those that are such machines.

    Raises:
        SpecError: there is none; says what is wrong with each.
    """
    ray = _connected()
    here = Surroundings.here(module, folder)
    alive = [
        Node(node["NodeID"], node["NodeManagerAddress"], int(node["Resources"].get("CPU", 0)))
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in without and node["Resources"].get("CPU", 0) >= 1
    ]
    usable, reasons = [], []
    for node in alive:
        key = (node.id, module, folder)
        since, why = _silent.get(key, (0.0, ""))
        if why and time.monotonic() - since < _FIND_SECONDS:
            reasons.append(why)
            continue
        try:
            facts = _known.get(key) or _ask_facts(ray, node, module, folder)
        except Exception as error:  # noqa: BLE001 - a node may fail in any way: another one serves
            reasons.append(f"{node.address}: {type(error).__name__}: {str(error).splitlines()[0]}")
            _silent[key] = time.monotonic(), reasons[-1]
            continue
        _known[key] = facts
        differ = here.differences(facts)
        if machines not in (None, facts.name):
            differ.append(f"the machine is {facts.name!r} and not {machines!r}, where measure_on wants to measure")
        if differ:
            reasons.append(f"{node.address}: {', '.join(differ)}")
        else:
            usable.append(node)
    if not usable:
        told = "; ".join(reasons) or "it has none that is alive and offers a core"
        raise SpecError(f"place: ray: no node of the cluster can run this: {told}")
    for reason in reasons:
        if reason not in _told:
            _told.add(reason)
            _log.warning("a node is left out: %s", reason)
    return usable


def freest(nodes: Sequence[Node], threads: int | None = None) -> Node:
    """The one with the most free cores.

    Raises:
        SpecError: none has as many as are wanted.
    """
    wanted = threads or 1
    large = [node for node in nodes if node.cores >= wanted]
    if not large:
        most = max(node.cores for node in nodes)
        raise SpecError(f"place: ray: a stage wants {wanted} cores, and the largest node has {most}")
    return max(large, key=lambda node: (node.cores - busy.get(node.id, 0), node.id))


def _connected() -> Any:
    """Ray, connected to the cluster of RAY_ADDRESS, or to the one of this machine.

    Raises:
        SpecError: none answers.
    """
    import ray

    with _lock:
        if not ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            address = os.environ.get("RAY_ADDRESS", "auto")
            try:
                ray.init(address=address, logging_level="ERROR", log_to_driver=False)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise SpecError(
                    f"place: ray finds no cluster at {address} ({str(error).splitlines()[0]}); start one with "
                    "`ray start --head`, set RAY_ADDRESS, or use place: local"
                ) from error
    return ray


def _ask_facts(ray: Any, node: Node, module: str, folder: str | None) -> Surroundings:
    asked = _start(ray, node, _Asked)
    try:
        return Surroundings(**json.loads(ray.get(asked.facts.remote(module, folder), timeout=_FIND_SECONDS)))
    finally:
        ray.kill(asked)


def _start(ray: Any, node: Node, kind: type) -> Any:
    """An actor; which cores are taken is counted here: Ray would wait for one without a word."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    made = ray.remote(kind).options(
        num_cpus=0,
        max_restarts=0,
        max_concurrency=4,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
    )
    return made.remote()
