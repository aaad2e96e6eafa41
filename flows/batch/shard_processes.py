"""Processes that answer shards: beside this one, or on the nodes of a Ray cluster."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from flows.batch.shards import Shard
from model_registry.store import Store
from model_registry.variant import Variant
from tasks.running.errors import SpecError
from tasks.running.process_guard import MARK, guarded
from tasks.running.ray_nodes import NodeLost, OnNode, freest, usable_nodes

WORKER = "flows.batch.shard_worker"
_END_SECONDS = 5.0
_LAST_WORDS = 500
"""Characters of what a process said at last, where nobody sees them otherwise."""
_WAIT_FOR_NODES, _LOOK_SECONDS = 60.0, 2.0
"""Seconds for lost nodes to be replaced."""
_AVOIDED_SECONDS = 45.0
"""Less than that, so that a node which only lost a process is used again."""
_log = logging.getLogger("winnow.ray")


class ShardProcess(Protocol):
    """Answers one shard at a time. The processes are equal: whoever answers, the bytes are the same."""

    number: str
    """Of the process, or of its node."""
    blameless: bool
    """Whether it died with its node, as far as that can be told, and so not over a shard."""

    def ask(self, shard: Shard) -> dict[str, Any] | None:
        """What it says; None where it died."""

    def leave(self) -> None:
        """Tell it to end; whoever asks it meanwhile hears that it died."""

    def end(self) -> str:
        """Wait until it has ended, and kill it where it does not; how it did."""


class Starter(Protocol):
    """Starts processes that answer shards, from several threads."""

    def begin_with(self, begin: str) -> None:
        """Set the first line of each, which says what is asked."""

    def start(self) -> ShardProcess:
        """Another process."""

    def stop(self) -> None:
        """Start none any more."""


class Here:
    """Starts them on this machine."""

    def begin_with(self, begin: str) -> None:
        self._begin = begin

    def start(self) -> ShardProcess:
        return ProcessHere(self._begin)

    def stop(self) -> None:
        """Nothing: starting one does not take long."""


class ProcessHere:
    """On this machine.

    Args:
        begin: its first line, which says what is asked.
        scratch: for its temporary files and for what it says on stderr, which is told by ``end``; None: stderr is this
            process's own.
    """

    blameless = False

    def __init__(self, begin: str, scratch: Path | None = None) -> None:
        self._begin: str | None = begin
        self._said = scratch / "said" if scratch else None
        with contextlib.ExitStack() as opened:
            self._process = subprocess.Popen(
                [sys.executable, "-m", WORKER],
                # What it leaves where it is ended over a shard goes with this process.
                env={
                    **os.environ,
                    "PYTHONSAFEPATH": "1",
                    "TMPDIR": str(scratch or guarded().scratch),
                    MARK: f"{guarded().mark}.shards",
                },
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=opened.enter_context(self._said.open("wb")) if self._said else None,
                text=True,
            )
        self.number = str(self._process.pid)
        self._patience: threading.Timer | None = None

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
        if self._patience is None:  # for one that does not hear it, while somebody waits for its answer
            self._patience = threading.Timer(_END_SECONDS, self._process.kill)
            self._patience.daemon = True
            self._patience.start()

    def end(self) -> str:
        self.leave()
        code = self._process.wait()
        assert self._patience is not None
        self._patience.cancel()
        assert self._process.stdout is not None
        self._process.stdout.close()
        last = self._said.read_text(errors="replace").strip()[-_LAST_WORDS:] if self._said else ""
        return f"{code} ({last})" if last else str(code)


class ShardHost:
    """On a node: holds a process there, with the variant's files fetched from the store."""

    def __init__(self) -> None:
        self._process: ProcessHere | None = None

    def begin(self, begin: str) -> str:
        """Start it; why that cannot be done, or nothing."""
        told = json.loads(begin)
        try:
            scratch = Path(tempfile.mkdtemp(prefix="winnow-shards-", dir=guarded().scratch))
            store, variant = Store(told["store"]), Variant.model_validate(told["variant"])
            told["folder"] = str(scratch / "model")
            store.materialise(variant.files, Path(told["folder"]))
            self._process = ProcessHere(json.dumps(told), scratch)
        except Exception as error:  # noqa: BLE001 - told to whoever asked
            return f"{type(error).__name__}: {error}"
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
        held: where it is to run; its own from now on.
        lost: told the node's number when that is gone, or cannot answer, and why.
    """

    def __init__(self, begin: str, held: OnNode, lost: Callable[[str, str], None]) -> None:
        self._held, self._lost, self.number, self.blameless = held, lost, held.node.id, False
        self._begun: Any = held.begin("begin", begin)

    def ask(self, shard: Shard) -> dict[str, Any] | None:
        try:
            if self._begun is not None:
                why, self._begun = str(self._held.answer(self._begun)), None
                if why:
                    raise NodeLost(f"it cannot answer rows: {why}")
            answer = self._held.answer(self._held.begin("ask", shard.model_dump_json()))
        except NodeLost as error:
            self.blameless = True
            self._lost(self._held.node.id, str(error))
            return None
        told: dict[str, Any] | None = json.loads(answer)
        return told

    def leave(self) -> None:
        self._held.end()

    def end(self) -> str:
        how = f"the loss of node {self._held.node.address}"
        if not self.blameless:
            with contextlib.suppress(NodeLost):
                how = str(self._held.answer(self._held.begin("end"), 4 * _END_SECONDS))
        self._held.end()
        return how


class Nodes:
    """Starts them on the nodes of a Ray cluster, as far as those are there.

    Raises:
        SpecError: none would answer as this machine.
    """

    def __init__(self) -> None:
        self._lost: dict[str, tuple[float, str]] = {}
        self._lock, self._stopped, self._begin = threading.Lock(), threading.Event(), ""
        self.cores = sum(node.cores for node in usable_nodes(WORKER, None))
        """Of all of them."""

    def begin_with(self, begin: str) -> None:
        self._begin = begin

    def start(self) -> ShardProcess:
        """A process on the node with most free cores; waits a while for one where all are lost.

        Raises:
            SpecError: there is none.
        """
        until = time.monotonic() + _WAIT_FOR_NODES
        while True:
            try:
                with self._lock:  # who comes next counts what is held already
                    if self._stopped.is_set():
                        raise SpecError("place: ray: the others were ended")
                    held = OnNode(freest(usable_nodes(WORKER, None, without=self._avoided())), ShardHost)
                return ProcessOnNode(self._begin, held, self._lose)
            except SpecError as error:
                if self._stopped.wait(_LOOK_SECONDS) or time.monotonic() > until:
                    raise SpecError(f"{error.message}{self._told_losses()}") from error

    def stop(self) -> None:
        self._stopped.set()

    def _lose(self, number: str, why: str) -> None:
        self._lost[number] = time.monotonic(), why.splitlines()[0]
        _log.warning("node %s was lost, and its files are given to others: %s", number[:8], self._lost[number][1])

    def _avoided(self) -> list[str]:
        """Those that were lost a moment ago: the cluster may take as long to know it. After that it does."""
        now = time.monotonic()
        return [number for number, (since, _) in list(self._lost.items()) if now - since < _AVOIDED_SECONDS]

    def _told_losses(self) -> str:
        return "".join(f"; node {number[:8]} was lost: {why}" for number, (_, why) in list(self._lost.items()))
