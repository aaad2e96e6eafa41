"""The child's side of a stage: ``python -m tasks.running.child`` runs one algorithm in a process of its own.

Protocol: WINNOW_CHILD_FDS names two descriptors. On the first a request is one JSON line; after a result the child
waits for the next one, so that the stages of a run share the seconds that importing torch takes. It is the lifeline
too: its end means that the parent died or needs the child no more, and the child kills its whole process group. On the
second progress and results are JSON lines. stdout and stderr are the stage's log, stdin is empty.

A stage must find the process as a fresh one: a run that is resumed computes its later stages in other processes than
one that was not. So what a workload has changed (folder, environment, torch's settings) is put back after each stage,
and the user's modules are imported again by the next.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.machinery
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from model_registry.manifest import FileEntry
from model_registry.store import Store
from model_registry.variant import Variant
from tasks.running.importing import importing
from tasks.running.machine_lock import machine_lock
from tasks.running.process_state import ProcessState, seed_all
from tasks.running.splits import DataRef
from tasks.running.stage import Job


@dataclass
class Result:
    """What a stage's child hands back."""

    variants: tuple[Variant, ...] = ()
    values: dict[str, Any] = field(default_factory=dict)
    files: tuple[FileEntry, ...] = ()
    roles: dict[str, str] = field(default_factory=dict)
    """Digests of variants by what they are to the stage, where it makes several."""


class Child:
    """What a stage's child gets: its job, inputs by role, the store, a private folder and a way to report."""

    def __init__(self, request: dict[str, Any], messages: int) -> None:
        self.job = Job.model_validate(request["job"])
        self.spec: dict[str, Any] = request["spec"]
        self._data = DataRef.model_validate(request["data"]) if request["data"] else None
        self.inputs: dict[str, Variant] = {k: Variant.model_validate(v) for k, v in request["inputs"].items()}
        self.extra: dict[str, Any] = request["extra"]
        self.key: str = request["key"]
        self.workdir = Path(request["workdir"])
        self.checkpoint_prefix = f"checkpoints/{self.key}/"
        self._messages = messages
        self._store: Store | None = None

    @property
    def data(self) -> DataRef:
        """The checked data; ValueError where the stage is run without."""
        if self._data is None:
            raise ValueError("the stage's child asks for data, and run_stage was given none; pass it data")
        return self._data

    @property
    def store(self) -> Store:
        """The job's store, connected on first use."""
        if self._store is None:
            self._store = Store(self.job.store)
        return self._store

    def progress(self, fraction: float, text: str) -> None:
        """Report progress (0 to 1) and what is going on."""
        send(self._messages, {"progress": [round(float(fraction), 4), text]})


def send(messages: int, message: dict[str, Any]) -> None:
    """Write one JSON line to the parent, whole."""
    data = json.dumps(message, allow_nan=False).encode() + b"\n"
    while data:
        data = data[os.write(messages, data) :]


def main() -> None:
    """Serve requests until one fails or the lifeline ends. Arguments: modules to import until a request comes."""
    asked, messages = map(int, os.environ.pop("WINNOW_CHILD_FDS").split(","))
    for name in ("RANK", "WORLD_SIZE"):  # of the script that ran the flow, which torchrun may have started
        os.environ.pop(name, None)
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(asked, requests), daemon=True).start()
    me = os.getpid()
    _skip_stage_packages()
    _import_ahead(sys.argv[1:], requests)
    last = False
    while not last:
        request = json.loads(requests.get())
        _use_threads(request["threads"])
        state = ProcessState.now()
        try:
            result = _run(request, messages)
            message: dict[str, Any] = {
                "result": {
                    "variants": [v.model_dump(mode="json", by_alias=True) for v in result.variants],
                    "values": result.values,
                    "files": [f.model_dump(mode="json") for f in result.files],
                    "roles": result.roles,
                }
            }
            json.dumps(message, allow_nan=False)  # a NaN among the values is this stage's error, not the protocol's
            whole = state.restore(request["job"]["workload"]["folder"])
            last = not whole or sys.stdout.closed or sys.stderr.closed
        except BaseException as error:  # noqa: BLE001 - reported to the parent, which raises it there
            traceback.print_exc()
            message = {"error": {"type": type(error).__name__, **_told(error)}}
            last = True  # who knows what it left behind
        if os.getpid() != me:  # the other side of a careless fork
            os._exit(0)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(ValueError, OSError):  # the user's code may have closed it
                stream.flush()
        send(messages, {**message, "last": last})
        del request, message
        gc.collect()  # what one stage held must not count against the next one's memory limit
        gc.freeze()  # what is left are modules: looking through them again would cost each stage 0.2 s
    # Interpreter shutdown of torch and friends costs up to half a second and can only go wrong from here on.
    os._exit(0)


def _told(error: BaseException) -> dict[str, Any]:
    """Text and details, whatever a stranger's exception makes of them."""
    try:
        text = str(error)
    except Exception as broken:  # noqa: BLE001 - anything may happen there
        text = f"its text cannot be made: {type(broken).__name__}"
    details = json.dumps(getattr(error, "details", {}), default=repr, skipkeys=True)
    values: dict[str, Any] = json.loads(details, parse_constant=str)  # NaN as text: JSON has none
    return {"message": text.encode("utf-8", "backslashreplace").decode(), "details": values}


def _import_ahead(modules: list[str], requests: queue.SimpleQueue[bytes]) -> None:
    """Import one module after the other until there is something to do, and connect to the store.

    Not while anybody measures: importing takes a whole core.
    """
    try:
        with importing(), machine_lock(exclusive=False, on_wait=lambda: _give_up(requests)):
            for module in modules:
                if not requests.empty():
                    return
                importlib.import_module(module)
            if modules:
                Store.from_environment()
    except _Asked:
        return


class _Asked(Exception):
    """A request has come while the machine was busy."""


def _give_up(requests: queue.SimpleQueue[bytes]) -> None:
    # The stage that asks may hold the lock that whoever measures waits for: it must not wait for us.
    if not requests.empty():
        raise _Asked


def _use_threads(threads: int) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)  # read when a library is imported
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def _run(request: dict[str, Any], messages: int) -> Result:
    folder = request["job"]["workload"]["folder"]
    if folder and folder not in sys.path:
        sys.path.append(folder)  # last, so that nothing of the user's can shadow ours
    module, _, function = request["entry"].partition(":")
    with importing():
        entry = getattr(importlib.import_module(module), function)
    seed_all(request["job"]["seed"])
    with _among(request["ranks"], Child(request, messages)) as (child, settle):
        outcome = entry(child)
        result = outcome if isinstance(outcome, Result) else Result(values=outcome)
        settle(result)
    return result


@contextlib.contextmanager
def _among(place: dict[str, Any] | None, child: Child) -> Iterator[tuple[Child, Callable[[Result], None]]]:
    """Be one of the processes that train together, if the parent says so; what settles that all have the same."""
    if place is None:
        yield child, lambda result: None
        return
    with importing():
        ranks = importlib.import_module("tasks.running.ranks")
    how = {"meeting": place["meeting"], "seconds": place["patience"], "address": place.get("address", "")}
    with ranks.joined(place["number"], place["count"], beside=(place["local"], place["here"]), **how) as joined:
        child.progress(0.0, f"rank {joined.number + 1} of {joined.count}")
        yield child, lambda result: joined.agree({"their results": repr([v.digest for v in result.variants])})


def _skip_stage_packages() -> None:
    """Let ``tasks.<stage>.<file>`` be imported without running ``tasks/<stage>/__init__.py``.

    Those hold the Prefect tasks; importing Prefect would cost every child two seconds.
    """
    root = Path(__file__).parents[1]
    for folder in root.iterdir():
        if (folder / "__init__.py").is_file() and folder.name != "workloads":
            name = f"tasks.{folder.name}"
            package = ModuleType(name, "stage package, not executed in a child process")
            package.__path__ = [str(folder)]
            package.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
            package.__spec__.submodule_search_locations = [str(folder)]
            sys.modules[name] = package


def _listen(asked: int, requests: queue.SimpleQueue[bytes]) -> None:
    with os.fdopen(asked, "rb") as lines:
        for line in lines:
            requests.put(line)
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    # Run under the real module name, so that entries importing tasks.running.child get this very module.
    sys.modules["tasks.running.child"] = sys.modules["__main__"]
    main()
