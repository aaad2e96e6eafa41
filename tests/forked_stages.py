"""Processes of stages without their imports: forked from one that has imported the libraries of every stage.

Most of what a stage of these tests costs is importing torch. ``launch`` starts its processes here by the way that it
always goes but for the last call: instead of a new interpreter there is a fork, which finds itself where
``python -m tasks.running.child`` begins. What tests say about starting, ending and sharing processes themselves is
tested with interpreters of their own (test_launch.py, test_kept_processes.py).
"""

from __future__ import annotations

import array
import contextlib
import gc
import importlib
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

WHERE = "WINNOW_TEST_NURSERY"
"""The environment variable with the socket's path."""
_CHILD = "tasks.running.child"
_ENTRIES = ("train", "distill", "prune", "cut", "export", "quantize", "qat", "ask")


class ForkedChild:
    """The part of ``subprocess.Popen`` that :mod:`tasks.running.launch` needs."""

    def __init__(self, modules: Sequence[str], environment: dict[str, str], descriptors: Sequence[int]) -> None:
        ours, theirs = os.pipe()
        self._status, told = os.pipe()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.connect(os.environ[WHERE])
            asked = json.dumps(
                {"modules": list(modules), "environment": environment, "folder": str(Path.cwd())}
            ).encode()
            passed = array.array("i", [*descriptors, theirs, told])
            line.sendmsg([len(asked).to_bytes(4, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])
            line.sendall(asked)
            with line.makefile() as answer:
                self.pid = int(answer.readline())
        os.close(theirs)
        os.close(told)
        self.stdout: IO[bytes] = os.fdopen(ours, "rb", buffering=0)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """The exit code once it is there.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired([_CHILD], timeout or 0)
            said = os.read(self._status, 64)
            self.returncode = int(said) if said else -9  # the nursery is gone
            os.close(self._status)
        return self.returncode


def fork_children(launch: Any) -> None:
    """Have that module start the processes of stages by a fork, where there is a nursery."""

    def popen(command: list[str], **how: Any) -> Any:
        if command[1:3] != ["-m", _CHILD] or not Path(os.environ.get(WHERE, "/nowhere")).exists():
            return subprocess.Popen(command, **how)
        environment = {name: value for name, value in how["env"].items() if name != "WINNOW_CHILD_FDS"}
        return ForkedChild(command[3:], environment, how["pass_fds"])

    names = ("PIPE", "STDOUT", "DEVNULL", "TimeoutExpired")
    launch.subprocess = SimpleNamespace(Popen=popen, **{name: getattr(subprocess, name) for name in names})


class Nursery:
    """The process that has everything imported; ``path`` is its socket."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="nursery-")  # short: a socket's path has 108 letters at most
        self.path = str(Path(self.folder.name) / "socket")
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__, self.path], stdin=subprocess.PIPE, start_new_session=True
        )

    def close(self) -> None:
        """End it; children that still live end with whoever asked for them."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=600)
        self.folder.cleanup()


def _be_child(asked: dict[str, Any], descriptors: Sequence[int]) -> None:
    """What the new process does instead of the nursery's work."""
    requests, messages, output, _ = descriptors
    os.setsid()
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"], WINNOW_CHILD_FDS=f"{requests},{messages}")
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    tempfile.tempdir = None  # as TMPDIR of the environment says
    sys.argv = [_CHILD, *asked["modules"]]
    child = importlib.import_module(_CHILD)
    child.main()


def _serve(path: str) -> None:
    child = importlib.import_module(_CHILD)
    child._skip_stage_packages()
    from tasks.running.launch import POOLS

    for modules in POOLS.values():
        for module in modules:
            importlib.import_module(module)
    for name in _ENTRIES:
        importlib.import_module(f"tasks.{name}.{name}_child")
    importlib.import_module("boto3")
    gc.collect()
    gc.freeze()
    running: dict[int, int] = {}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen(64)
        while True:
            ready = select.select([listener, sys.stdin], [], [], 0.01 if running else None)[0]
            if sys.stdin in ready:
                return
            if listener in ready:
                _fork(listener, running)
            while running:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                told = running.pop(pid)
                with contextlib.suppress(BrokenPipeError):  # whoever asked for it was killed
                    os.write(told, str(os.waitstatus_to_exitcode(status)).encode())
                os.close(told)


def _fork(listener: socket.socket, running: dict[int, int]) -> None:
    line, _ = listener.accept()
    with line:
        length, passed, _, _ = line.recvmsg(4, socket.CMSG_SPACE(4 * 4))
        if not passed:
            return  # killed while it asked
        descriptors = array.array("i")
        descriptors.frombytes(passed[0][2])
        stream = line.makefile("rb")
        text = stream.read(int.from_bytes(length, "big"))
        if len(text) < int.from_bytes(length, "big"):
            for descriptor in descriptors:
                os.close(descriptor)
            return
        asked = json.loads(text)
        pid = os.fork()
        if pid == 0:
            listener.close()
            stream.close()
            line.close()
            for told in running.values():
                os.close(told)
            _be_child(asked, descriptors)
            os._exit(0)
        running[pid] = descriptors[3]
        for descriptor in descriptors[:3]:
            os.close(descriptor)
        with contextlib.suppress(OSError):
            line.sendall(b"%d\n" % pid)


if __name__ == "__main__":
    _serve(sys.argv[1])
