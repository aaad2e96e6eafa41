"""A process that answers shards: ``python -m flows.batch.shard_worker``, asked by lines of JSON on its stdin.

It ends when its stdin does, so that none outlives whoever asks. Each answer is written under a name that its content
follows from, and only where nothing has that name: whoever is second has the same bytes, and they are dropped.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from flows.batch.shard_rows import answer_file
from flows.batch.shards import Shard, ShardQuestion, partial_file
from model_registry.manifest import hash_file
from model_registry.store import Store
from model_registry.variant import Variant
from serving.engine import Engine
from tasks.running.errors import WinnowError


def main() -> None:
    """Answer until stdin ends. The first line says what is asked; then a line for each shard, answered by a line."""
    lines: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    begun = json.loads(lines.get())
    question, target = ShardQuestion.model_validate(begun["question"]), begun["target"]
    store = Store(begun["store"])
    variant = Variant.model_validate(begun["variant"])
    engine = Engine(Path(begun["folder"]), variant)
    while True:
        shard = Shard.model_validate_json(lines.get())
        try:
            told: dict[str, Any] = _answer(store, engine, question, shard, target)
        except WinnowError as error:  # of this shard; anything else ends the process, which is told by its last lines
            told = {"error": error.message}
        sys.stdout.write(json.dumps({"uri": shard.uri, **told}) + "\n")
        sys.stdout.flush()


def _answer(store: Store, engine: Engine, question: ShardQuestion, shard: Shard, target: str) -> dict[str, Any]:
    name = question.name(shard)
    with tempfile.TemporaryDirectory(prefix="winnow-shard-") as folder:
        source = Path(shard.uri)
        if shard.uri.startswith("s3://"):
            source = store.download(shard.uri, Path(folder) / "rows.parquet")
        made = Path(folder) / "answers.parquet"
        rows = answer_file(
            source,
            made,
            lambda feeds: engine.run(feeds, question.outputs or None),
            engine.served,
            batch=question.batch,
            keep=question.keep,
            label=shard.uri,
        )
        won = put_once(store, target, name, made)
        return {"name": name, "rows": rows, "sha256": hash_file(made), "won": won}


def put_once(store: Store, target: str, name: str, file: Path) -> bool:
    """Write a file at the target, S3 or a folder, unless there is one of that name; whether it was written."""
    if target.startswith("s3://"):
        return store.put_uri_if_absent(f"{target.rstrip('/')}/{name}", file.read_bytes())
    whole, partial = Path(target) / name, partial_file(target, name, os.getpid())
    partial.write_bytes(file.read_bytes())
    try:
        os.link(partial, whole)
    except FileExistsError:
        return False
    finally:
        partial.unlink()
    return True


def _listen(lines: SimpleQueue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
