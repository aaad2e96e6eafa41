"""Stages on the nodes of a Ray cluster: each in a process of its own there, held by an actor.

What a stage is asked is plain JSON, and all data are in the store: the place decides only where its process runs. The
actor starts it as it would be started here (limits, lifeline, log), and dies with its node; then the stage is placed on
another one, and goes on from its last checkpoint. A node that was lost may go on computing for a while: what it writes
has the same bytes under the same names.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import platform
import socket
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model_registry.cpu_class import cpu_class
from model_registry.store import Store
from tasks.running.errors import ChildFailed, Interrupted, SpecError, named_errors
from tasks.running.launch import Progress, cores, run_child, stopping
from tasks.running.machine_lock import machine_lock
from tasks.running.process_guard import guarded
from tasks.running.ranked import run_ranks
from tasks.running.source_hash import closure_hash
from tasks.running.stage import Limits, Parallel

_log = logging.getLogger("winnow.ray")
_LOOK_SECONDS = 0.25
_LOSSES = 4
"""Nodes that one stage may lose, one after the other."""
_FIND_SECONDS = 60.0
"""For a node to answer the first question; a worker there imports Winnow."""
_PLACE_SECONDS = 120.0
"""For an actor to start where a core is free for it."""


@dataclass(frozen=True)
class Surroundings:
    """What must be the same on a node as here, or its results would be others."""

    python: str
    machine: str
    code: str
    """Hash of Winnow's own code."""
    workload: str
    """Hash of the user's, or why it is not there."""

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
        return cls(".".join(version[:2]), cpu_class(), closure_hash("tasks.running.child"), workload)

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
    """A node that stages may run on."""

    id: str
    address: str
    cores: int


class StageHost:
    """On a node: holds one stage's process. An actor; ``told`` is asked while ``run`` runs."""

    def __init__(self) -> None:
        self._progress: list[tuple[float, str]] = []
        self._log = Path(tempfile.mkdtemp(prefix="winnow-host-")) / "stage.log"
        self._log.touch()

    def facts(self, module: str, folder: str | None) -> str:
        """This node's Surroundings, as JSON."""
        return json.dumps(asdict(Surroundings.here(module, folder)))

    def run(self, request: str, how: str) -> str:
        """Run the stage as :func:`tasks.running.launch.run_child` does; its answer, or its error, as JSON."""
        asked, settings = json.loads(request), json.loads(how)
        shared = Parallel.model_validate(settings["shared"]) if settings["shared"] else None
        asked["workdir"] = tempfile.mkdtemp(prefix="winnow-stage-", dir=guarded().scratch)
        threads = settings["threads"]
        ranks = shared.ranks(threads or cores()) if shared else 1
        common: dict[str, Any] = {
            "name": settings["name"],
            "limits": Limits.model_validate(settings["limits"]),
            "log_path": self._log,
            "threads": 1 if shared else threads,
            "on_progress": lambda fraction, text: self._progress.append((fraction, text)),
        }
        try:
            Store(asked["job"]["store"]).ping()
            with machine_lock(exclusive=False):
                answer = run_ranks(asked, ranks=ranks, **common) if ranks > 1 else run_child(asked, **common)
        except Exception as error:  # noqa: BLE001 - told to whoever asked, who raises it there
            details = getattr(error, "details", {})
            told = {"type": type(error).__name__, "message": str(error), "details": details}
            return json.dumps({"error": told}, default=str)
        return json.dumps({"result": answer, "host": socket.gethostname()})

    def told(self, progress: int, written: int) -> str:
        """What is new since so many lines of progress and bytes of the log."""
        with self._log.open("rb") as stream:
            stream.seek(written)
            log = stream.read(1 << 20)
        return json.dumps({"progress": self._progress[progress:], "log": log.decode("latin-1")})


def require_cluster() -> None:
    """Refuse ``place: ray`` where there is no cluster to be reached; called before anything is computed.

    Raises:
        SpecError: Ray is not installed, or no cluster answers.
    """
    if importlib.util.find_spec("ray") is None:
        raise SpecError("place: ray needs Ray, which is not installed: pip install 'winnow-mlops[ray]'")
    _connected()


def run_on_ray(
    request: dict[str, Any],
    *,
    name: str,
    limits: Limits,
    log_path: Path,
    threads: int | None = None,
    shared: Parallel | None = None,
    on_progress: Progress | None = None,
) -> tuple[dict[str, Any], str]:
    """Run ``request['entry']`` on a node of the cluster; its result, and which node that was.

    Args:
        request, name, limits, log_path, threads, on_progress: as for :func:`tasks.running.launch.run_child`.
        shared: how its training is shared out among processes, which all run on that node.

    Raises:
        SpecError: no node can run it: too few cores, or other code, Python or CPUs than here.
        ChildFailed: it lost its node again and again.
        Exception: what the stage raised there.
    """
    how = {"name": name, "limits": limits.model_dump(mode="json"), "threads": threads}
    text = json.dumps({**how, "shared": shared.model_dump(mode="json") if shared else None})
    workload = request["job"]["workload"]
    lost: list[str] = []
    while True:
        node = _choose(_usable(workload["path"].partition(":")[0], workload["folder"], without=lost), threads, lost)
        answer = _placed(node, json.dumps(request), text, name=name, log_path=log_path, on_progress=on_progress)
        if answer is not None:
            break
        lost.append(node.id)
        if len(lost) > _LOSSES:
            raise ChildFailed(f"stage {name} lost its node {len(lost)} times, the last one was {node.address}")
        _log.warning(
            "%s: node %s was lost; it is placed again, and goes on from its last checkpoint", name, node.address
        )
    if "error" in answer:
        error = answer["error"]
        kind = named_errors().get(error["type"])
        if kind is None:
            raise ChildFailed(f"stage {name} failed on {node.address}: {error['type']}: {error['message']}")
        raise kind(error["message"], **error["details"])
    return answer["result"], f"{answer['host']}, node {node.id[:8]}"


_busy: dict[str, int] = {}
"""Stages of this process by node."""
_lock = threading.Lock()


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


_known: dict[tuple[str, str, str | None], Surroundings] = {}
"""By node and workload: asked once."""
_told: set[str] = set()
"""Reasons that were given already."""


def _usable(module: str, folder: str | None, *, without: list[str]) -> list[Node]:
    """The nodes whose results would be those of this machine.

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
        try:
            facts = _known.get(key) or _ask_facts(ray, node, module, folder)
        except Exception as error:  # noqa: BLE001 - a node may fail in any way: another one serves
            reasons.append(f"{node.address}: {type(error).__name__}: {str(error).splitlines()[0]}")
            continue
        _known[key] = facts
        differ = here.differences(facts)
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


def _ask_facts(ray: Any, node: Node, module: str, folder: str | None) -> Surroundings:
    host = _start(ray, node, cores=0)
    try:
        return Surroundings(**json.loads(ray.get(host.facts.remote(module, folder), timeout=_FIND_SECONDS)))
    finally:
        ray.kill(host)


def _choose(nodes: list[Node], threads: int | None, lost: list[str]) -> Node:
    """The one with the most free cores.

    Raises:
        SpecError: none has as many as the stage wants.
    """
    wanted = threads or 1
    large = [node for node in nodes if node.cores >= wanted]
    if not large:
        most = max(node.cores for node in nodes)
        raise SpecError(f"place: ray: a stage wants {wanted} cores, and the largest node has {most}")
    return max(large, key=lambda node: (node.cores - _busy.get(node.id, 0), node.id not in lost, node.id))


def _start(ray: Any, node: Node, *, cores: int) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    made = ray.remote(StageHost).options(
        num_cpus=cores,
        max_restarts=0,
        max_concurrency=4,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
    )
    return made.remote()


def _placed(
    node: Node, request: str, how: str, *, name: str, log_path: Path, on_progress: Progress | None
) -> dict[str, Any] | None:
    """What the stage says on that node; None where the node is lost."""
    ray = _connected()
    with _lock:
        _busy[node.id] = _busy.get(node.id, 0) + 1
    host = _start(ray, node, cores=0)  # a core is counted here: Ray would wait for one without a word
    try:
        answer = host.run.remote(request, how)
        listened = _Listened(log_path, on_progress)
        began = time.monotonic()
        while True:
            if stopping():
                raise Interrupted(f"stage {name} was ended because the run was asked to stop")
            ready, _ = ray.wait([answer], timeout=_LOOK_SECONDS)
            listened.hear(ray.get(host.told.remote(*listened.position), timeout=_PLACE_SECONDS))
            if ready:
                told: dict[str, Any] = json.loads(ray.get(answer))
                return told
            if not listened.heard and time.monotonic() - began > _PLACE_SECONDS:
                _log.warning("%s: node %s has said nothing for %.0f s", name, node.address, _PLACE_SECONDS)
                began = time.monotonic()
    except (ray.exceptions.RayActorError, ray.exceptions.NodeDiedError, ray.exceptions.GetTimeoutError) as error:
        _log.info("%s on %s: %s", name, node.address, error)
        return None
    finally:
        with _lock:
            _busy[node.id] -= 1
        with contextlib.suppress(Exception):  # it is gone already
            ray.kill(host)


class _Listened:
    """What was heard of a stage so far; passes it on."""

    def __init__(self, log_path: Path, on_progress: Progress | None) -> None:
        self._log_path, self._on_progress = log_path, on_progress
        self.position = (0, 0)
        log_path.parent.mkdir(parents=True, exist_ok=True)

    @property
    def heard(self) -> bool:
        return self.position != (0, 0)

    def hear(self, told: str) -> None:
        new = json.loads(told)
        for fraction, text in new["progress"]:
            if self._on_progress is not None:
                self._on_progress(fraction, text)
        log = new["log"].encode("latin-1")
        if log:
            with self._log_path.open("ab") as stream:
                stream.write(log)
        self.position = (self.position[0] + len(new["progress"]), self.position[1] + len(log))
