"""One component as a running process: started, recognised again later, ended with everything that it started."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from infra import procfs
from infra.component import Component
from infra.log_keeper import shorten_log

MARK = "WINNOW_COMPONENT"


@dataclass(frozen=True)
class Running:
    """What the pid file holds, once it was found to be true."""

    pid: int
    recipe: str
    since: float  # seconds since the epoch


class Daemon:
    """The process of one component of one stack.

    It leads its own session and carries a mark in its environment, which all its descendants inherit. So its members
    are found even when the leader was killed, the pid file was lost, or a child left the session.
    """

    def __init__(self, name: str, home: Path) -> None:
        self.name = name
        self.pid_file = home / "run" / f"{name}.json"
        self.log_file = home / "logs" / f"{name}.log"
        self.mark = f"{_mark(home)}{name}"

    def running(self) -> Running | None:
        """The live process that this stack started; None for a stale pid file or a pid that is somebody else's now."""
        try:
            noted = json.loads(self.pid_file.read_bytes())
            running = Running(noted["pid"], noted["recipe"], noted["since"])
            identity = noted["started"], noted["boot"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        _reap(running.pid)
        found = procfs.look_at_process(running.pid)
        if found is None or found.zombie or (found.started, procfs.boot_id()) != identity:
            return None
        return running

    def members(self) -> list[procfs.Process]:
        """Every live process of this component, descendants included, whatever became of their leader."""
        leader = self.running()
        return [
            process
            for process in procfs.everyone()
            if process.pid != os.getpid()
            and ((leader and process.session == leader.pid) or procfs.marked(process.pid, self.mark) == "")
        ]

    def start(self, component: Component) -> Running:
        """Start the process in a session of its own, its output appended to the log file."""
        component.folder.mkdir(parents=True, exist_ok=True)
        for folder in (self.pid_file.parent, self.log_file.parent):
            folder.mkdir(parents=True, exist_ok=True)
        shorten_log(self.log_file)
        scratch = {} if component.scratch is None else {"TMPDIR": str(component.scratch)}
        if component.scratch is not None:
            shutil.rmtree(component.scratch, ignore_errors=True)
            component.scratch.mkdir(mode=0o700, parents=True)
        name, value = self.mark.split("=", 1)
        with self.log_file.open("ab") as log:
            log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} start: {' '.join(component.argv)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                component.argv,
                cwd=component.folder,
                env={**os.environ, **component.environment, **scratch, name: value},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        process.returncode = 0  # it is meant to outlive us: the Popen object shall neither wait for it nor warn
        found = procfs.look_at_process(process.pid)
        running = Running(process.pid, component.recipe, time.time())
        noted = {
            "schema": 1,
            "pid": running.pid,
            "started": found.started if found else 0,
            "boot": procfs.boot_id(),
            "recipe": running.recipe,
            "since": running.since,
        }
        partial = self.pid_file.with_suffix(".partial")
        partial.write_text(json.dumps(noted))
        partial.replace(self.pid_file)
        return running

    def end(self, grace: float, *, epilogue: float | None = None, spares: str = "") -> int:
        """End all members: SIGTERM, SIGKILL after ``grace`` seconds. Returns how many there were; none is left.

        The leader comes first, since it may want to end its children in an order of its own. With ``epilogue`` the
        processes that left its session come before it, and it is given that many seconds to report their end. Those
        with a variable ``spares`` in their environment are not touched, unless it is empty.
        """

        def doomed() -> list[procfs.Process]:
            found = self.members()
            return [one for one in found if not spares or procfs.marked(one.pid, f"{spares}=") is None]

        members = doomed()
        count, leader = len(members), self.running()
        if leader is not None:
            left = [process for process in members if process.session != leader.pid]
            if epilogue is not None and left:
                _end(left, grace)
                time.sleep(epilogue)
            _end([process for process in members if process.pid == leader.pid], grace)
        while members := doomed():  # children that a leader did not end, or whose leader was dead
            _end(members, grace)
        self.pid_file.unlink(missing_ok=True)
        return count

    def tail(self, lines: int) -> list[str]:
        """The last lines of the log, as far back as there is any."""
        found = b""
        for path in (self.log_file, self.log_file.with_suffix(".log.1")):
            with contextlib.suppress(FileNotFoundError), path.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - 400 * lines + len(found)))
                found = log.read() + found
            if len(found) >= 400 * lines:
                break
        return found.decode(errors="replace").splitlines()[-lines:] if lines else []


def census(home: Path) -> dict[str, list[procfs.Process]]:
    """All processes of the folder's stack by component, in one walk over /proc."""
    prefix, found = _mark(home), dict[str, list[procfs.Process]]()
    for process in procfs.everyone():
        if process.pid != os.getpid() and (name := procfs.marked(process.pid, prefix)):
            found.setdefault(name, []).append(process)
    return found


def _mark(home: Path) -> str:
    return f"{MARK}={hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:16]}:"


def _end(processes: list[procfs.Process], grace: float) -> None:
    """Each is watched by itself until it is gone: a dying process shows no environment any more."""
    for process in processes:
        _signal(process, signal.SIGTERM)
    deadline = time.monotonic() + grace
    while processes := [process for process in processes if _lives(process)]:
        if time.monotonic() >= deadline:
            for process in processes:
                _signal(process, signal.SIGKILL)
        time.sleep(0.03)


def _lives(process: procfs.Process) -> bool:
    _reap(process.pid)
    now = procfs.look_at_process(process.pid)
    return now is not None and now.started == process.started and not now.zombie


def _signal(process: procfs.Process, number: signal.Signals) -> None:
    """Signal the very process that was seen, not a newcomer of the same pid."""
    now = procfs.look_at_process(process.pid)
    if now is not None and now.started == process.started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _reap(pid: int) -> None:
    """Take a dead child of ours off the process table (it is nobody's child in any other process)."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
