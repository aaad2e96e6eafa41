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
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from model_registry.quiet import QUIET
from model_registry.sizes import size_text
from tasks.running.errors import ChildFailed, Interrupted, StageOutOfMemory, StageTimedOut, named_errors
from tasks.running.stage import Limits

Progress = Callable[[float, str], None]
_TAIL = 15
_AT_ONCE = 2
POOLS = {
    "checks": ("great_expectations", "torch", "tasks.workloads.workload"),
    "torch": ("torch._dynamo", "tasks.torch_models.fit", "tasks.export.torch_onnx", "tasks.export.parity"),
    "numbers": ("onnxruntime.quantization", "tasks.evidence.scoring", "tasks.evidence.paired"),
}
"""What the processes of each pool of stages need, and a standby imports ahead; what all of them need comes first."""


@dataclass
class _Process:
    popen: subprocess.Popen[bytes]
    messages: int
    pool: str
    code: str = ""
    """Hash of the user's code that it has imported; empty while it has imported none."""


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

    Raises:
        StageTimedOut, StageOutOfMemory: a limit was passed; names the limit, the peak and the last log lines.
        ChildFailed: the child raised an unknown exception or died.
        Exception: any error of :mod:`tasks.running.errors` or of the store that the child raised, as the same class.
    """
    process = _take(pool, code)
    request = {**request, "threads": threads or _cores()}
    tail: deque[str] = deque(maxlen=_TAIL)
    answer: dict[str, Any] | None = None
    peak = 0
    started = time.monotonic()
    try:
        assert process.popen.stdin is not None and process.popen.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it died already: reported below, with its log
            process.popen.stdin.write(json.dumps(request).encode() + b"\n")
            process.popen.stdin.flush()
        with log_path.open("ab") as log, selectors.DefaultSelector() as selector:
            buffers = {process.messages: b"", process.popen.stdout.fileno(): b""}
            for descriptor in buffers:
                selector.register(descriptor, selectors.EVENT_READ)
            looked = 0.0
            while selector.get_map():
                # Once the answer is there only what is left of the log is read.
                events = selector.select(timeout=0.2 if answer is None else 0)
                if answer is not None and not events:
                    break
                for ready, _ in events:
                    data = os.read(ready.fd, 1 << 16)
                    if not data:
                        selector.unregister(ready.fd)
                        continue
                    *lines, buffers[ready.fd] = (buffers[ready.fd] + data).split(b"\n")
                    if ready.fd == process.messages:
                        for line in lines:
                            message = json.loads(line)
                            if "progress" in message:
                                if on_progress:
                                    on_progress(*message["progress"])
                            else:
                                answer = message
                    else:
                        log.write(data)
                        log.flush()
                        tail.extend(line.decode(errors="replace") for line in lines if line.strip())
                now = time.monotonic()
                if now - started > limits.seconds:
                    raise StageTimedOut(
                        f"stage {name} ran past its limit of {limits.seconds:g} s (peak memory {size_text(peak)}) and "
                        f"was ended; raise limits.{name}.seconds or give it less to do.{_last(tail, log_path)}"
                    )
                if now - looked > 0.25:
                    looked, peak = now, max(peak, _resident(process.popen.pid))
                    if peak > limits.memory_bytes:
                        raise StageOutOfMemory(
                            f"stage {name} grew to {size_text(peak)}, past its limit of "
                            f"{size_text(limits.memory_bytes)}, and was ended; raise limits.{name}.memory_bytes or use "
                            f"smaller batches.{_last(tail, log_path)}"
                        )
    finally:
        if pool and _keeping.is_set() and answer is not None and "result" in answer:
            process.code = code
            with _lock:
                _standby.append(process)
        else:
            _end(process)
    if answer is None:
        if _closing.is_set():
            raise Interrupted(f"stage {name} was ended because the run was asked to stop")
        status = process.popen.returncode
        died = signal.Signals(-status).name if status is not None and status < 0 else f"exit code {status}"
        raise ChildFailed(
            f"the process of stage {name} died ({died}; peak memory {size_text(peak)}).{_last(tail, log_path)}",
            died=died,
        )
    if "error" in answer:
        raise _rebuild(answer["error"], name, tail, log_path)
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
        _kill_group(process.popen.pid)


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
    reader, writer = os.pipe()
    environment = {
        **os.environ,
        **QUIET,
        "PYTHONHASHSEED": "0",
        "WINNOW_CHILD_FD": str(writer),
    }
    popen = subprocess.Popen(
        [sys.executable, "-m", "tasks.running.child", *preload],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=(writer,),
        env=environment,
        start_new_session=True,  # a group of its own, so that everything it starts ends with it
    )
    os.close(writer)
    process = _Process(popen, reader, pool)
    with _lock:
        _table[popen.pid] = process
    return process


def _end(process: _Process) -> None:
    popen = process.popen
    _kill_group(popen.pid)
    popen.wait()
    with _lock:
        _table.pop(popen.pid, None)
    for stream in (popen.stdin, popen.stdout):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.close()
    os.close(process.messages)


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _resident(pid: int) -> int:
    """Resident bytes of the process and all below it."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in [parent, *parent.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
    return total


def _rebuild(error: dict[str, Any], name: str, tail: deque[str], log_path: Path) -> Exception:
    kind = named_errors().get(error["type"])
    if kind is None:
        return ChildFailed(f"stage {name} failed: {error['type']}: {error['message']}{_last(tail, log_path)}")
    return kind(error["message"], **error["details"])


def _last(tail: deque[str], log_path: Path) -> str:
    lines = "".join(f"\n    {line}" for line in tail)
    return f"\n  log: {log_path}" + (f"\n  last lines:{lines}" if lines else "")


def _cores() -> int:
    return len(os.sched_getaffinity(0))
