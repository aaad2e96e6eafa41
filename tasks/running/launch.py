"""Child processes: started, limited, listened to, and never left behind."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_registry.quiet import QUIET
from model_registry.sizes import size_text
from tasks.running.errors import ChildFailed, Interrupted, StageOutOfMemory, StageTimedOut, named_errors
from tasks.running.machine_lock import lock_folder
from tasks.running.process_guard import MARK, end_marked, guarded
from tasks.running.process_tree import resident_bytes
from tasks.running.stage import Limits
from tasks.running.stage_log import StageLog

Progress = Callable[[float, str], None]
_AT_ONCE = 2
_LEFT_TO_READ = 1.0
"""Seconds for what is left of the log after the answer: a process that it left behind may go on writing."""
POOLS = {
    "checks": ("great_expectations", "torch", "tasks.workloads.workload"),
    "torch": ("torch._dynamo", "tasks.torch_models.fit", "tasks.export.torch_onnx", "tasks.export.parity"),
    "numbers": ("onnxruntime.quantization", "tasks.evidence.scoring", "tasks.evidence.paired"),
}
"""What the processes of each pool of stages need, and a standby imports ahead; what all of them need comes first."""


@dataclass
class _Process:
    popen: subprocess.Popen[bytes]
    requests: int
    """Where it reads, and the lifeline: it dies when this is closed. Its stdin is empty: a stage asks nobody."""
    messages: int
    pool: str
    mark: str
    """In the environment of all that it starts."""
    code: str = ""
    """Hash of the user's code that it has imported; empty while it has imported none."""
    died: str = ""
    """How it ended, if it did so by itself: a signal's name or an exit code."""


_table: dict[int, _Process] = {}
_standby: list[_Process] = []
_lock = threading.Lock()
_closing = threading.Event()
_keeping = threading.Event()
_runs: list[object] = []
"""The runs under way in this process: a notebook starts one after the other, or several in threads."""


def run_child(
    request: dict[str, Any],
    *,
    name: str,
    limits: Limits,
    log_path: Path,
    pool: str = "",
    code: str = "",
    threads: int | None = None,
    on_progress: Progress | None = None,
    party: Party | None = None,
) -> dict[str, Any]:
    """Run ``request['entry']`` in a child process and return its result.

    Args:
        request: what :class:`tasks.running.child.Child` reads; plain JSON.
        name: the stage, for messages.
        limits: wall-clock seconds and resident bytes of the child's process group.
        log_path: where stdout and stderr of the child go.
        pool: stages of one pool use the same libraries: a standby of the pool is taken if there is one, and inside
            :func:`kept_processes` the child becomes a standby again when it has answered well.
        code: hash of the user's code; a process that has imported another version of it is not taken.
        threads: compute threads; None = all cores.
        party: others that work at the same stage: they share its limit of memory, and end together.

    Raises:
        StageTimedOut, StageOutOfMemory: a limit was passed; names the limit, the peak and the last log lines.
        ChildFailed: the child raised an unknown exception or died.
        Exception: any error of :mod:`tasks.running.errors` or of the store that the child raised, as the same class.
    """
    process = _take(pool, code)
    party = party or Party()
    party.add(process)
    request = {"ranks": None, **request, "threads": threads or cores()}
    with StageLog(log_path) as log:
        answer: dict[str, Any] | None = None
        watch = _Watch(name, limits, process.popen.pid, log, party)
        try:
            _send(process, request)
            answer = _listen(process, watch, log, on_progress)
            if answer is None:
                process.died = _how_it_died(process.popen)
        finally:
            if pool and _keeping.is_set() and answer is not None and "result" in answer and not answer["last"]:
                process.code = code
                with _lock:
                    _standby.append(process)
            else:
                _end(process)
    return _result(answer, process, watch)


class Party:
    """Processes that work at one stage together, since ``began`` by the monotonic clock; None: now."""

    def __init__(self, began: float | None = None) -> None:
        self.began = time.monotonic() if began is None else began
        self._processes: list[_Process] = []
        self._resident: dict[int, int] = {}
        self._over = False

    def add(self, process: _Process) -> None:
        self._processes.append(process)
        if self._over:
            _kill(process)

    def end(self) -> None:
        """End them all, and whoever joins later."""
        self._over = True
        for process in list(self._processes):
            if process.popen.poll() is None:
                _kill(process)

    def resident(self, pid: int) -> int:
        """Resident bytes of all of them, with those of this process as they are now."""
        self._resident[pid] = resident_bytes(pid)
        return sum(self._resident.values())


class _Watch:
    """The limits of one stage: time and memory since it was asked."""

    def __init__(self, name: str, limits: Limits, pid: int, log: StageLog, party: Party) -> None:
        self.name, self.log, self.peak, self._party = name, log, 0, party
        self._limits, self._pid = limits, pid
        self._looked = 0.0

    def look(self) -> None:
        """Raises StageTimedOut, StageOutOfMemory: a limit is passed."""
        now, limits = time.monotonic(), self._limits
        if now - self._party.began > limits.seconds:
            raise StageTimedOut(
                f"stage {self.name} ran past its limit of {limits.seconds:g} s (peak memory {size_text(self.peak)}) "
                f"and was ended; raise limits.{self.name}.seconds or give it less to do.{self.log.last_lines()}"
            )
        if now - self._looked > 0.25:
            self._looked, self.peak = now, max(self.peak, self._party.resident(self._pid))
            if self.peak > limits.memory_bytes:
                raise StageOutOfMemory(
                    f"stage {self.name} grew to {size_text(self.peak)}, past its limit of "
                    f"{size_text(limits.memory_bytes)}, and was ended; raise limits.{self.name}.memory_bytes or use "
                    f"smaller batches.{self.log.last_lines()}"
                )


def _send(process: _Process, request: dict[str, Any]) -> None:
    data = json.dumps(request).encode() + b"\n"
    with contextlib.suppress(BrokenPipeError):  # it died already: reported later, with its log
        while data:
            data = data[os.write(process.requests, data) :]


def _listen(process: _Process, watch: _Watch, log: StageLog, on_progress: Progress | None) -> dict[str, Any] | None:
    """Its answer, None where it died without one; what it prints goes into the log meanwhile."""
    assert process.popen.stdout is not None
    answer: dict[str, Any] | None = None
    begun = bytearray()  # of a message
    until = float("inf")
    with selectors.DefaultSelector() as selector:
        for descriptor in (process.messages, process.popen.stdout.fileno()):
            selector.register(descriptor, selectors.EVENT_READ)
        while selector.get_map() and time.monotonic() < until:
            # Once the answer is there only what is left of the log is read.
            events = selector.select(timeout=0.2 if answer is None else 0)
            if answer is not None and not events:
                break
            for ready, _ in events:
                data = os.read(ready.fd, 1 << 16)
                if not data:
                    selector.unregister(ready.fd)
                    if ready.fd == process.messages:
                        until = min(until, time.monotonic() + _LEFT_TO_READ)
                elif ready.fd != process.messages:
                    log.write(data)
                else:
                    begun += data
                    *lines, begun = begun.split(b"\n") if b"\n" in data else [begun]
                    for message in map(json.loads, lines):
                        if "progress" not in message:
                            answer, until = message, time.monotonic() + _LEFT_TO_READ
                        elif on_progress:
                            on_progress(*message["progress"])
            watch.look()
    return answer


def _result(answer: dict[str, Any] | None, process: _Process, watch: _Watch) -> dict[str, Any]:
    """What it made; raises what it raised, and Interrupted or ChildFailed where it died."""
    name, log = watch.name, watch.log
    if answer is None:
        if _closing.is_set():
            raise Interrupted(f"stage {name} was ended because the run was asked to stop")
        raise ChildFailed(
            f"the process of stage {name} died ({process.died}; peak memory {size_text(watch.peak)})."
            f"{log.last_lines()}",
            died=process.died,
        )
    if "error" in answer:
        raise _rebuild(answer["error"], name, log)
    result: dict[str, Any] = answer["result"]
    return result


def prewarm(pool: str) -> None:
    """Start a standby for the pool, which imports its libraries while something else computes."""
    if not _closing.is_set():
        process = _start(POOLS.get(pool, ()), pool)
        with _lock:
            _standby.append(process)


def prewarm_if_kept(pool: str) -> None:
    """The same inside :func:`kept_processes`, unless there are as many as the flow lets work at once."""
    with _lock:
        there = sum(process.pool == pool for process in _table.values())
    if pool and _keeping.is_set() and there < _AT_ONCE:
        prewarm(pool)


@contextlib.contextmanager
def kept_processes() -> Iterator[None]:
    """Let the stages of one run share processes; none is left when the body ends.

    What :func:`end_all` said to earlier runs does not hold for one that begins after all of them have ended.
    """
    this = object()
    with _lock:
        if not _runs:
            _closing.clear()
        _runs.append(this)
        _keeping.set()
    try:
        yield
    finally:
        with _lock:
            _runs.remove(this)
            if not _runs:
                _keeping.clear()
        if not _keeping.is_set():
            end_standbys()


def end_standbys() -> None:
    """End the standbys nobody took."""
    with _lock:
        idle, _standby[:] = list(_standby), []
    for process in idle:
        _end(process)


def end_all() -> None:
    """End every child's process group; the runs under way start no more. Called first when they are asked to stop."""
    _closing.set()
    with _lock:
        running = list(_table.values())
    for process in running:
        _kill(process)


def stopping() -> bool:
    """Whether the runs under way were asked to stop."""
    return _closing.is_set()


def _take(pool: str, code: str) -> _Process:
    if _closing.is_set():
        raise Interrupted("the run was asked to stop; no new process is started")
    with _lock:
        for process in reversed(_standby):  # the one used last has the most in memory
            if process.pool == pool and process.code in ("", code) and process.popen.poll() is None:
                _standby.remove(process)
                return process
    return _start((), pool)


def _start(preload: tuple[str, ...], pool: str) -> _Process:
    asked, requests = os.pipe()
    messages, answers = os.pipe()
    guard = guarded()
    mark = f"{guard.mark}.{uuid.uuid4().hex}"
    environment = {
        **os.environ,
        **QUIET,
        "PYTHONHASHSEED": "0",
        "WINNOW_CHILD_FDS": f"{asked},{answers}",
        MARK: mark,
        "TMPDIR": str(guard.scratch),  # what a stranger's code leaves there goes with the run
        "WINNOW_MACHINE_LOCK": str(lock_folder()),  # which lies in the temporary folder of everybody
    }
    popen = subprocess.Popen(
        [sys.executable, "-m", "tasks.running.child", *preload],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=(asked, answers),
        env=environment,
        start_new_session=True,  # a group of its own, so that everything it starts ends with it
    )
    os.close(asked)
    os.close(answers)
    process = _Process(popen, requests, messages, pool, mark)
    with _lock:
        _table[popen.pid] = process
    return process


def _kill(process: _Process) -> None:
    """The process, its group, and what it started in sessions of their own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.popen.pid, signal.SIGKILL)
    end_marked(process.mark)


def _how_it_died(popen: subprocess.Popen[bytes]) -> str:
    try:
        status = popen.wait(timeout=5)
    except subprocess.TimeoutExpired:
        return "it closed its connection"
    return signal.Signals(-status).name if status < 0 else f"exit code {status}"


def _end(process: _Process) -> None:
    popen = process.popen
    _kill(process)
    popen.wait()
    with _lock:
        _table.pop(popen.pid, None)
    if popen.stdout is not None:
        popen.stdout.close()
    os.close(process.requests)
    os.close(process.messages)


def _rebuild(error: dict[str, Any], name: str, log: StageLog) -> Exception:
    kind = named_errors().get(error["type"])
    if kind is None:
        return ChildFailed(f"stage {name} failed: {error['type']}: {error['message']}{log.last_lines()}")
    return kind(error["message"], **error["details"])


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0))
