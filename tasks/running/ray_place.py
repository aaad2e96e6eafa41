"""Stages on the nodes of a Ray cluster: each in a process of its own there, held by an actor.

What a stage is asked is plain JSON, and all data are in the store: the place decides only where its process runs. The
actor starts it as it would be started here (limits, lifeline, log), and dies with its node; then the stage is placed on
another one, and goes on from its last checkpoint. A node that was lost may go on computing for a while: what it writes
has the same bytes under the same names.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from model_registry.store import Store
from tasks.running.errors import ChildFailed, Interrupted, RankLost, SpecError, named_errors
from tasks.running.launch import Party, Progress, cores, run_child, stopping
from tasks.running.machine_lock import lock_folder, machine_lock
from tasks.running.process_guard import guarded
from tasks.running.ranked import PATIENCE, run_ranks, train_together
from tasks.running.ray_nodes import Node, NodeLost, OnNode, busy, freest, usable_nodes
from tasks.running.stage import Limits, Parallel

_log = logging.getLogger("winnow.ray")
_LOOK_SECONDS = 0.25
_LOSSES = 4
"""Nodes that one stage may lose, one after the other."""
_PLACE_SECONDS = 120.0
"""For an actor to start where a core is free for it."""
_COMING_SECONDS = 15.0
"""Between two looks for nodes in the place of those that were lost."""


class StageHost:
    """On a node: holds one stage's process. An actor; ``told`` is asked while ``run`` runs."""

    def __init__(self) -> None:
        self._progress: list[tuple[float, str]] = []
        self._held = contextlib.ExitStack()
        self._log = Path(tempfile.mkdtemp(prefix="winnow-host-", dir=guarded().scratch)) / "stage.log"
        self._log.touch()

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
            if asked.get("ranks"):  # whoever placed them has the lock, once for all ranks of a machine
                answer = run_child(asked, party=Party(time.monotonic() - settings["used"]), **common)
            else:
                with machine_lock(exclusive=settings["alone"], on_wait=self._wait):
                    answer = run_ranks(asked, ranks=ranks, **common) if ranks > 1 else run_child(asked, **common)
        except Exception as error:  # noqa: BLE001 - told to whoever asked, who raises it there
            details = getattr(error, "details", {})
            told = {"type": type(error).__name__, "message": str(error), "details": details}
            return json.dumps({"error": told}, default=str)
        return json.dumps({"result": answer, "host": socket.gethostname()})

    def _wait(self) -> None:
        waiting = (0.0, "waiting for the node")
        if waiting not in self._progress:
            self._progress.append(waiting)

    def machine(self) -> str:
        """What tells this machine, or container, from those that have other machine locks."""
        folder = lock_folder()
        folder.parent.mkdir(parents=True, exist_ok=True)
        found, boot = folder.parent.stat(), Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{found.st_dev}:{found.st_ino}:{folder.name}"

    def hold(self) -> None:
        """Keep measurements from this machine while the object lives."""
        self._held.enter_context(machine_lock(exclusive=False))

    def free_port(self) -> int:
        """A port of this node where nobody listens yet."""
        with socket.socket() as tried:
            tried.bind(("", 0))
            return int(tried.getsockname()[1])

    def told(self, progress: int, written: int) -> str:
        """What is new since so many lines of progress and bytes of the log."""
        with self._log.open("rb") as stream:
            stream.seek(written)
            log = stream.read(1 << 20)
        return json.dumps({"progress": self._progress[progress:], "log": log.decode("latin-1")})


def run_on_ray(
    request: dict[str, Any],
    *,
    name: str,
    limits: Limits,
    log_path: Path,
    threads: int | None = None,
    shared: Parallel | None = None,
    machines: str | None = None,
    on_progress: Progress | None = None,
) -> tuple[dict[str, Any], str]:
    """Run ``request['entry']`` on a node of the cluster; its result, and which node that was, or which ones.

    Args:
        request, name, limits, log_path, threads, on_progress: as for :func:`tasks.running.launch.run_child`.
        shared: how its training is shared out among processes: on that node, or on several where their number was said
            and none has as many cores.
        machines: it measures, on a node that is such a machine, and alone there.

    Raises:
        SpecError: no node can run it: too few cores, or other code, Python or CPUs than here, or no such machine.
        ChildFailed: it lost its node again and again.
        Exception: what the stage raised there.
    """
    workload = request["job"]["workload"]
    code = workload["path"].partition(":")[0], workload["folder"]
    how = {"name": name, "limits": limits.model_dump(mode="json"), "threads": threads, "alone": machines is not None}
    together = shared.processes if shared is not None and shared.processes != "auto" else 1
    if shared is not None and together > max(node.cores for node in usable_nodes(*code)):
        spread = partial(_OnNodes, code=code, how=how, shared=shared, lost=[], began=time.monotonic())
        answer = train_together(request, gather=spread, name=name, log_path=log_path, on_progress=on_progress)
        return answer["result"], answer["host"]

    text = json.dumps({**how, "shared": shared.model_dump(mode="json") if shared else None})
    lost: list[str] = []
    while True:
        nodes = usable_nodes(*code, without=lost, machines=machines)
        large = [node for node in nodes if node.cores >= together]  # after a loss there may be none
        node = freest(large or nodes, threads if machines is None else None)  # files say themselves how many
        host = OnNode(node, StageHost)
        try:
            answer = _listen_to(host, json.dumps(request), text, name, _Listened(log_path, on_progress))
            break
        except NodeLost as error:
            _log.info("%s: %s", name, error)
        finally:
            host.end()
        lost.append(node.id)
        if len(lost) > _LOSSES:
            raise ChildFailed(f"stage {name} lost its node {len(lost)} times, the last one was {node.address}")
        _log.warning(
            "%s: node %s was lost; it is placed again, and goes on from its last checkpoint", name, node.address
        )
    return _result(answer, name, node), f"{answer['host']}, node {node.id[:8]}"


def _result(answer: dict[str, Any], name: str, node: Node) -> dict[str, Any]:
    """What the stage made; raises what it raised."""
    if "error" in answer:
        error = answer["error"]
        kind = named_errors().get(error["type"])
        if kind is None:
            raise ChildFailed(f"stage {name} failed on {node.address}: {error['type']}: {error['message']}")
        raise kind(error["message"], **error["details"])
    result: dict[str, Any] = answer["result"]
    return result


class _OnNodes:
    """Ranks on several nodes, as many as those have cores, each in a process that its own actor holds.

    Args:
        code: where the workload is, for those who look for it.
        how: name, limits and threads, as JSON.
        shared: how many processes are wanted; where their number changes nothing in the result, fewer do after a loss.
        lost: numbers of the nodes that were lost, which grows.
        began: when the training did, by the monotonic clock.

    Raises:
        RankLost: one of the nodes is gone already, or after a loss there are too few.
        SpecError: the cluster has not as many cores, at the first attempt.
        Interrupted: the run is asked to stop.
    """

    def __init__(
        self,
        attempt: int,
        *,
        code: tuple[str, str | None],
        how: dict[str, Any],
        shared: Parallel,
        lost: list[str],
        began: float,
    ) -> None:
        self._name, self._lost, self._over = how["name"], lost, False
        self._limits, used = Limits.model_validate(how["limits"]), time.monotonic() - began
        self._how = {**how, "threads": 1, "shared": None, "used": used}
        try:
            nodes = usable_nodes(*code, without=lost)
            self.count = _as_many(shared, sum(node.cores for node in nodes), first=attempt == 1)
        except SpecError as error:
            if attempt == 1:
                raise
            _wait_unless_stopped(_COMING_SECONDS)  # others may come in the place of those that were lost
            raise RankLost(error.message) from error
        free = {node: max(0, node.cores - busy.get(node.id, 0)) for node in nodes}
        order = sorted(nodes, key=lambda node: (-free[node], node.id))
        places = [node for node in order for _ in range(free[node])]
        places += [node for node in order for _ in range(node.cores - free[node])]
        self._nodes = sorted(places[: self.count], key=order.index)
        self._hosts: list[OnNode] = []
        try:
            for node in self._nodes:
                self._hosts.append(OnNode(node, StageHost))
            self._meeting = f"tcp://{self._nodes[0].address}:{self._asked(0, 'free_port')}"
            first: dict[str, int] = {}
            for number in range(self.count):
                first.setdefault(self._asked(number, "machine"), number)
            # At once, and in one order: else a measurement could come between two that wait for each other.
            for _, number in sorted(first.items()):
                self._hold(number)
        except BaseException:
            self.end()
            raise

    def run(self, number: int, request: dict[str, Any], log_path: Path, on_progress: Progress | None) -> dict[str, Any]:
        node = self._nodes[number]
        beside = self._nodes.count(node)
        place = {
            "number": number,
            "count": self.count,
            "local": self._nodes[:number].count(node),
            "here": beside,
            "meeting": self._meeting,
            "address": node.address,
            "patience": PATIENCE,
        }
        limits = self._limits.model_copy(update={"memory_bytes": self._limits.memory_bytes // beside})
        how = json.dumps({**self._how, "limits": limits.model_dump(mode="json")})
        asked = json.dumps({**request, "ranks": place})
        try:
            answer = _listen_to(self._hosts[number], asked, how, self._name, _Listened(log_path, on_progress))
        except NodeLost as error:
            self._lose(number)
            raise RankLost(str(error)) from error
        return {"result": _result(answer, self._name, node), "host": self._told_places()}

    def leave(self) -> None:
        self.end()

    def end(self) -> None:
        self._over = True
        for host in self._hosts:
            host.end()

    def _hold(self, number: int) -> None:
        """Take the lock of that one's machine, however long a measurement has it."""
        asked = self._hosts[number].begin("hold")
        while not self._hosts[number].ready(asked, _LOOK_SECONDS):
            _wait_unless_stopped(0.0)
        self._heard(number, asked)

    def _asked(self, number: int, method: str) -> Any:
        return self._heard(number, self._hosts[number].begin(method))

    def _heard(self, number: int, asked: Any) -> Any:
        try:
            return self._hosts[number].answer(asked, _PLACE_SECONDS)
        except NodeLost as error:
            self._lose(number)
            raise RankLost(str(error)) from error

    def _lose(self, number: int) -> None:
        if not self._over:
            self._lost.append(self._nodes[number].id)

    def _told_places(self) -> str:
        return ", ".join(f"node {number[:8]}" for number in dict.fromkeys(node.id for node in self._nodes))


def _wait_unless_stopped(seconds: float) -> None:
    """Raises Interrupted where the run is asked to stop."""
    until = time.monotonic() + seconds
    while True:
        if stopping():
            raise Interrupted("the run was asked to stop, and no more processes are placed")
        left = until - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(_LOOK_SECONDS, left))


def _as_many(shared: Parallel, cores: int, *, first: bool) -> int:
    """Processes for a training on nodes of so many cores: as many as were asked for; or fewer, where some were lost and
    their number changes nothing in the result.

    Raises:
        SpecError: there are too few cores.
    """
    assert shared.processes != "auto"
    if shared.processes <= cores:
        return shared.processes
    if first or not shared.exact:
        raise SpecError(
            f"place: ray: a training wants {shared.processes} processes, and the cluster's nodes have {cores} cores "
            "altogether; add nodes, or lower parallel.processes"
        )
    return 1 << cores.bit_length() - 1


def _listen_to(host: OnNode, request: str, how: str, name: str, listened: _Listened) -> dict[str, Any]:
    """What the stage says on that node.

    Raises:
        NodeLost: the node is.
        Interrupted: the run is asked to stop.
    """
    answer = host.begin("run", request, how)
    began = time.monotonic()
    while True:
        if stopping():
            raise Interrupted(f"stage {name} was ended because the run was asked to stop")
        ready = host.ready(answer, _LOOK_SECONDS)
        listened.hear(host.answer(host.begin("told", *listened.position), _PLACE_SECONDS))
        if ready:
            told: dict[str, Any] = json.loads(host.answer(answer))
            return told
        if not listened.heard and time.monotonic() - began > _PLACE_SECONDS:
            _log.warning("%s: node %s has said nothing for %.0f s", name, host.node.address, _PLACE_SECONDS)
            began = time.monotonic()


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
