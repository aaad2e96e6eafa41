"""A data set answered by a released variant: partition, answer, aggregate. Memory does not grow with the rows.

What is there already is not computed again; a process that dies has its shard given to another. Exactly once comes
from the names of the answers (see :class:`flows.batch.shards.ShardQuestion`) and from writing only where nothing is.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from flows.batch.shard_processes import Here, Nodes, ShardProcess, Starter
from flows.batch.shards import Shard, ShardQuestion, partial_file, shards_of
from model_registry.store import Store
from model_registry.variant import Variant
from tasks.running.errors import SpecError, WinnowError
from tasks.running.launch import cores
from tasks.running.ray_nodes import require_cluster
from tasks.running.source_hash import closure_hash
from tasks.running.stage import Place

MANIFEST = "manifest.json"
_TRIES = 3
"""Processes that may die over one shard."""
_LOSSES = 6
"""Nodes that may be lost over one shard."""


class ShardFailed(WinnowError):
    """A shard could not be answered; names it, and why. What was answered before stays."""


@dataclass(frozen=True)
class BatchAnswers:
    """What became of a data set."""

    shards: int
    computed: int
    """Shards that were answered now; the others were there already."""
    rows: int
    """Of those that were computed."""
    seconds: float
    root: str
    """Hash over all shards and the hashes of their answers: one number for the whole."""


def answer_all(
    store: Store,
    variant: Variant,
    source: str,
    target: str,
    *,
    workers: int | None = None,
    batch: int = 256,
    outputs: Sequence[str] = (),
    keep: Sequence[str] = (),
    place: Place = "local",
    on_progress: Callable[[int, int], None] = lambda done, whole: None,
) -> BatchAnswers:
    """Answer every Parquet file at the source into one of its own at the target, and write ``manifest.json``.

    Args:
        source: ``s3://bucket/prefix``, a folder or a file.
        target: ``s3://bucket/prefix`` or a folder.
        workers: processes, each with the threads of the variant; None: one for each core.
        batch: rows that are answered together, counted from the first row of each file: part of the answer's name,
            since some variants answer a row otherwise in other company.
        outputs: names of those that are wanted; all by default.
        keep: columns that are copied into the answers, such as an id.
        place: where the processes run: on this machine, or on the nodes of the Ray cluster of RAY_ADDRESS. The answers
            are the same.

    Raises:
        SpecError: there is no such cluster, or none of its nodes would answer as this machine; or files of this machine
            are to be read or written there.
        DataReadError: there is no such file, or its columns are not the model's inputs.
        ShardFailed: a shard ended its process again and again.
    """
    began = time.monotonic()
    nodes = _nodes(source, target) if place == "ray" else None
    shards = shards_of(store, source)
    code = closure_hash("flows.batch.shard_worker")[:16]
    question = ShardQuestion(variant=variant.digest, batch=batch, outputs=tuple(outputs), keep=tuple(keep), code=code)
    if not target.startswith("s3://"):
        Path(target).mkdir(parents=True, exist_ok=True)
    there = _there(store, target)
    missing = [shard for shard in shards if question.name(shard) not in there]
    rows, done = 0, len(shards) - len(missing)
    on_progress(done, len(shards))
    begin = {
        "question": question.model_dump(mode="json"),
        "variant": variant.model_dump(mode="json", by_alias=True),
        "store": store.uri,
        "target": target,
    }

    def forget(shard: Shard, number: str) -> None:
        if not target.startswith("s3://"):
            partial_file(target, question.name(shard), number).unlink(missing_ok=True)

    with tempfile.TemporaryDirectory(prefix="winnow-model-") as folder:
        starter: Starter
        if nodes is not None:
            starter, most = nodes, nodes.cores
        else:
            store.materialise(variant.files, Path(folder))
            begin["folder"] = folder
            starter, most = Here(), cores()
        starter.begin_with(json.dumps(begin))
        for told in _Team(starter, min(workers or most, len(missing)), forget).answers(missing):
            rows += told["rows"]
            done += 1
            on_progress(done, len(shards))
    root = _write_manifest(store, target, question, shards)
    return BatchAnswers(len(shards), len(missing), rows, time.monotonic() - began, root)


def _nodes(source: str, target: str) -> Nodes:
    for name, where in (("source", source), ("target", target)):
        if not where.startswith("s3://"):
            raise SpecError(f"place: ray: the nodes cannot reach the {name} {where}; give s3://bucket/prefix")
    require_cluster()
    return Nodes()


class _Team:
    """Threads that each hold a process and take shards from one list.

    Args:
        starter: makes the processes.
        forget: removes what a process left of a shard over which it died.
    """

    def __init__(self, starter: Starter, size: int, forget: Callable[[Shard, str], None]) -> None:
        self._starter, self._size, self._forget = starter, size, forget
        self._running: list[ShardProcess] = []
        self._over = threading.Event()

    def answers(self, shards: Sequence[Shard]) -> Iterator[dict[str, Any]]:
        """What the processes say, as it comes; none is left at the end."""
        heard: SimpleQueue[dict[str, Any] | BaseException | None] = SimpleQueue()
        todo, at_work = deque(shards), self._size
        with ThreadPoolExecutor(max_workers=max(1, self._size)) as pool:
            try:
                for _ in range(self._size):
                    pool.submit(self._work, todo, heard.put)
                while at_work:
                    told = heard.get()
                    if isinstance(told, BaseException):
                        raise told
                    if told is None:
                        at_work -= 1
                    else:
                        yield told
            finally:  # one failed, or whoever asked has enough: nobody waits for the others
                self._end()

    def _end(self) -> None:
        self._over.set()
        self._starter.stop()
        for process in list(self._running):
            process.leave()

    def _work(self, todo: deque[Shard], tell: Callable[[dict[str, Any] | BaseException | None], None]) -> None:
        """Answer shards until there is none; tells each answer, or the error, and at last None."""
        process: ShardProcess | None = None
        try:
            while not self._over.is_set() and (shard := _first(todo)) is not None:
                died = lost = 0
                while (answer := (process := process or self._started()).ask(shard)) is None:
                    if self._over.is_set():
                        return
                    died, lost = died + (not process.blameless), lost + process.blameless
                    how = process.end()
                    self._forget(shard, process.number)
                    self._running.remove(process)
                    process = None
                    if died == _TRIES or lost == _LOSSES:
                        raise ShardFailed(
                            f"{shard.uri}: {died + lost} processes died over it, the last one with {how}; see what "
                            "they said, or leave this file out"
                        )
                if "error" in answer:
                    raise ShardFailed(answer["error"])
                tell(answer)
        except BaseException as error:  # noqa: BLE001 - raised by whoever listens
            tell(error)
        finally:
            try:
                if process is not None:
                    process.end()
            except BaseException as error:  # noqa: BLE001 - likewise
                tell(error)
            tell(None)

    def _started(self) -> ShardProcess:
        process = self._starter.start()
        self._running.append(process)
        if self._over.is_set():
            process.leave()
        return process


def _first(todo: deque[Shard]) -> Shard | None:
    """The next one, which no other thread has; None where there is none."""
    try:
        return todo.popleft()
    except IndexError:
        return None


def _there(store: Store, target: str) -> set[str]:
    """Names at the target."""
    if target.startswith("s3://"):
        prefix = target.rstrip("/") + "/"
        return {uri.removeprefix(prefix) for uri in store.list_uri(prefix)}
    return {path.name for path in Path(target).iterdir()}


def _write_manifest(store: Store, target: str, question: ShardQuestion, shards: Sequence[Shard]) -> str:
    """Which answer belongs to which shard, by their hashes; the hash over all of it."""
    lines = [{"shard": s.uri, "content": s.content, "answer": question.name(s)} for s in shards]
    told = {"schema": 1, "question": question.model_dump(mode="json"), "answers": lines}
    told["root"] = root = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    content = json.dumps(told, indent=1).encode() + b"\n"
    if target.startswith("s3://"):
        store.put_uri(f"{target.rstrip('/')}/{MANIFEST}", content)
    else:
        partial = Path(target) / f".{MANIFEST}.{os.getpid()}"
        partial.write_bytes(content)
        partial.replace(Path(target) / MANIFEST)
    return root
