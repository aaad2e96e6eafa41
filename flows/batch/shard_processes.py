"""Processes that answer shards: beside this one, or on the nodes of a Ray cluster."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from flows.batch.shards import Shard
from model_registry.store import Store
from model_registry.variant import Variant
from tasks.running.errors import SpecError
from tasks.running.process_guard import guarded
from tasks.running.ray_nodes import NodeLost, OnNode, freest, usable_nodes

WORKER = "flows.batch.shard_worker"
_END_SECONDS = 5.0


class ShardProcess(Protocol):
    """Answers one shard at a time. The processes are equal: whoever answers, the bytes are the same."""

    number: str
    """Of the process, or of its node."""

    def ask(self, shard: Shard) -> dict[str, Any] | None:
        """What it says; None where it died."""

    def leave(self) -> None:
        """Tell it to end."""

    def end(self) -> str:
        """Wait until it has ended, and kill it where it does not; how it did."""

    @property
    def blameless(self) -> bool:
        """Whether it died with its node, and so not over a shard."""


class ProcessHere:
    """On this machine.

    Args:
        begin: its first line, which says what is asked.
    """

    blameless = False

    def __init__(self, begin: str) -> None:
        self._begin: str | None = begin
        self._process = subprocess.Popen(
            [sys.executable, "-m", WORKER],
            env={**os.environ, "PYTHONSAFEPATH": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.number = str(self._process.pid)

    def ask(self, shard: Shard) -> dict[str, Any] | None:
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            if self._begin is not None:
                process.stdin.write(self._begin + "\n")
                self._begin = None
            process.stdin.write(shard.model_dump_json() + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except (OSError, ValueError):  # it is gone, or was ended meanwhile
            return None
        told: dict[str, Any] | None = json.loads(line) if line.endswith("\n") else None
        return told

    def leave(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def end(self) -> str:
        self.leave()
        try:
            code = self._process.wait(timeout=_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        return str(code)


class ShardHost:
    """On a node: holds a process there, with the variant's files fetched from the store."""

    def __init__(self) -> None:
        self._process: ProcessHere | None = None

    def begin(self, begin: str) -> str:
        """Start it; why that cannot be done, or nothing."""
        told = json.loads(begin)
        try:
            store, variant = Store(told["store"]), Variant.model_validate(told["variant"])
            told["folder"] = tempfile.mkdtemp(prefix="winnow-model-", dir=guarded().scratch)
            store.materialise(variant.files, Path(told["folder"]))
        except Exception as error:  # noqa: BLE001 - told to whoever asked
            return f"{type(error).__name__}: {error}"
        self._process = ProcessHere(json.dumps(told))
        return ""

    def ask(self, shard: str) -> str:
        """What the process says, as JSON; null where it died."""
        assert self._process is not None
        return json.dumps(self._process.ask(Shard.model_validate_json(shard)))

    def end(self) -> str:
        """End the process; how it did."""
        return "" if self._process is None else self._process.end()


class ProcessOnNode:
    """On a node of a Ray cluster; it dies with that.

    Args:
        begin: as for :class:`ProcessHere`, without the folder of the variant's files.
        held: where it is to run.
        lost: told when the node is gone.

    Raises:
        SpecError: it cannot begin there.
    """

    def __init__(self, begin: str, held: OnNode, lost: Callable[[str], None]) -> None:
        self._held, self._lost, self.number, self.blameless = held, lost, held.node.id, False
        why = self._asked("begin", begin)
        if why:
            held.end()
            raise SpecError(f"place: ray: node {held.node.address} cannot answer rows: {why}")

    def ask(self, shard: Shard) -> dict[str, Any] | None:
        told: dict[str, Any] | None = json.loads(self._asked("ask", shard.model_dump_json()) or "null")
        return told

    def leave(self) -> None:
        """Nothing: it ends with its actor."""

    def end(self) -> str:
        code = self._asked("end", seconds=2 * _END_SECONDS)
        self._held.end()
        return f"the loss of node {self._held.node.address}" if self.blameless else code

    def _asked(self, method: str, *arguments: str, seconds: float | None = None) -> str:
        """What its host says; nothing once the node is lost."""
        if self.blameless:
            return ""
        try:
            return str(self._held.answer(self._held.begin(method, *arguments), seconds))
        except NodeLost:
            self.blameless = True
            self._lost(self._held.node.id)
            return ""


class Nodes:
    """The nodes of a cluster, as far as they are there, on which processes are started.

    Raises:
        SpecError: none would answer as this machine.
    """

    def __init__(self) -> None:
        self._lost, self._lock = list[str](), threading.Lock()
        self.cores = sum(node.cores for node in usable_nodes(WORKER, None))
        """Of all of them."""

    def start(self, begin: str) -> ShardProcess:
        """A process on the node with most free cores; one that was lost before is not used again."""
        with self._lock:  # who comes next counts what is held already
            held = OnNode(freest(usable_nodes(WORKER, None, without=self._lost)), ShardHost)
        return ProcessOnNode(begin, held, self._lost.append)
