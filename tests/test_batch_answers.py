"""Data sets answered by processes: the same bytes however many there are, each shard once, whatever dies."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx_models import digits, publish

from flows.batch import batch_answers
from flows.batch.batch_answers import BatchAnswers, ShardFailed, answer_all
from flows.batch.shards import shards_of
from model_registry.store import Store
from model_registry.variant import Variant
from serving.engine import Engine
from tasks.running.errors import DataReadError

FILES, ROWS = 6, 500


@pytest.fixture
def variant(store: Store, tmp_path: Path) -> Variant:
    folder = tmp_path / "model"
    return publish(store, folder, digits(folder))


def write_shards(folder: Path, files: int = FILES, rows: int = ROWS) -> list[np.ndarray]:
    """Parquet files of digits with an id; what they hold."""
    folder.mkdir()
    chance, made = np.random.default_rng(0), []
    for number in range(files):
        images = chance.integers(0, 17, (rows, 64)).astype(np.float32)
        table = pa.table(
            {
                "id": np.arange(number * rows, (number + 1) * rows),
                "image": pa.FixedSizeListArray.from_arrays(pa.array(images.ravel()), 64),
            }
        )
        pq.write_table(table, folder / f"part-{number:03d}.parquet", row_group_size=170)
        made.append(images)
    return made


def upload(store: Store, folder: Path, prefix: str) -> str:
    target = f"s3://{store.bucket}/{prefix}"
    for file in folder.glob("*.parquet"):
        store.put_uri(f"{target}/{file.name}", file.read_bytes())
    return target


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("*.parquet"))}


def test_answers_are_the_same_bytes_whoever_gives_them(store: Store, variant: Variant, tmp_path: Path) -> None:
    rows = write_shards(tmp_path / "rows")
    for workers in (1, 2):
        done = answer_all(
            store, variant, str(tmp_path / "rows"), str(tmp_path / f"by-{workers}"), workers=workers, keep=["id"]
        )
        assert (done.shards, done.computed, done.rows) == (FILES, FILES, FILES * ROWS)
    one, two = digests(tmp_path / "by-1"), digests(tmp_path / "by-2")
    assert one == two and len(one) == FILES

    engine = Engine(tmp_path / "model", variant)
    for number, name in enumerate(sorted(one)):
        table = pq.read_table(tmp_path / "by-1" / name)
        assert table.column_names == ["id", *(spec.name for spec in engine.outputs)]
        assert table.column("id").to_pylist() == list(range(number * ROWS, (number + 1) * ROWS))
        wanted = engine.run({"image": rows[number].reshape(-1, 1, 8, 8)})
        logits = np.stack(table.column(variant.outputs[0].name).to_numpy())
        assert np.array_equal(logits, wanted[variant.outputs[0].name])
        assert table.column("label").to_pylist() == [v.decode() for v in wanted["label"].ravel()]


def test_what_is_there_is_not_computed_again(store: Store, variant: Variant, tmp_path: Path) -> None:
    write_shards(tmp_path / "rows")
    source = upload(store, tmp_path / "rows", "rows")
    target = f"s3://{store.bucket}/answers"

    def again(**how: Any) -> BatchAnswers:
        return answer_all(store, variant, source, target, workers=2, **how)

    first, second = again(), again()
    assert (first.computed, second.computed, second.rows, second.shards) == (FILES, 0, 0, FILES)
    assert first.root == second.root
    assert again(batch=100).computed == FILES, "the batch is part of the question"
    store.put_uri(f"{source}/part-001.parquet", (tmp_path / "rows" / "part-002.parquet").read_bytes())
    assert again().computed == 1, "only the file that changed"
    manifest = json.loads(store.client.get_object(Bucket=store.bucket, Key="answers/manifest.json")["Body"].read())
    there = {uri.rpartition("/")[2] for uri in store.list_uri(target)}
    assert {line["answer"] for line in manifest["answers"]} < there
    assert manifest["question"]["variant"] == variant.digest


def workers_of_ours() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            if "flows.batch.shard_worker" in " ".join(process.cmdline()):
                found.append(process)
    return found


def test_a_killed_process_loses_and_doubles_nothing(store: Store, variant: Variant, tmp_path: Path) -> None:
    write_shards(tmp_path / "rows", files=12)
    straight = answer_all(store, variant, str(tmp_path / "rows"), str(tmp_path / "straight"), workers=1)
    killed: list[int] = []

    def strike(done: int, _: int) -> None:
        if done in (2, 5, 8):
            process = workers_of_ours()[0]
            killed.append(process.pid)
            process.kill()

    done = answer_all(store, variant, str(tmp_path / "rows"), str(tmp_path / "struck"), workers=2, on_progress=strike)
    assert len(killed) == 3 and done.computed == 12
    assert digests(tmp_path / "struck") == digests(tmp_path / "straight") and done.root == straight.root
    assert not list((tmp_path / "struck").glob(".*parquet*")) and workers_of_ours() == []


def test_a_shard_that_kills_is_given_up_and_the_rest_goes_on_later(
    store: Store, variant: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path / "rows", files=3)
    monkeypatch.setattr(batch_answers, "_TRIES", 2)
    stop = threading.Event()

    def strike() -> None:
        while not stop.is_set():
            for process in workers_of_ours():
                with contextlib.suppress(psutil.Error):
                    process.kill()
            time.sleep(0.05)

    killer = threading.Thread(target=strike)
    killer.start()
    try:
        with pytest.raises(ShardFailed, match="2 processes died over it, the last one with -9"):
            answer_all(store, variant, str(tmp_path / "rows"), str(tmp_path / "answers"), workers=1)
    finally:
        stop.set()
        killer.join()
    assert answer_all(store, variant, str(tmp_path / "rows"), str(tmp_path / "answers")).shards == 3


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (
            {"picture": [[0.0] * 64]},
            r"has the columns \['picture'\], and the model's inputs are \{'image': \[1, 8, 8\]\}",
        ),
        ({"image": [[0.0] * 63]}, r"column 'image': 1 rows hold 63 values, and a row of the input has 64 \[1, 8, 8\]"),
        ({"image": [["a"] * 64]}, "column 'image' does not hold FP32"),
    ],
)
def test_columns_that_do_not_fit_are_said(
    store: Store, variant: Variant, tmp_path: Path, columns: dict[str, Any], says: str
) -> None:
    (tmp_path / "rows").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "rows" / "a.parquet")
    with pytest.raises(ShardFailed, match=says):
        answer_all(store, variant, str(tmp_path / "rows"), str(tmp_path / "answers"))
    assert list((tmp_path / "answers").iterdir()) == []


def test_a_source_without_files_is_said(store: Store, tmp_path: Path) -> None:
    for source in (str(tmp_path), f"s3://{store.bucket}/nothing", "s3://no-such-bucket-here/x"):
        with pytest.raises(DataReadError):
            shards_of(store, source)
    (tmp_path / "a.parquet").write_text("no parquet")
    (shard,) = shards_of(store, str(tmp_path / "a.parquet"))
    assert shard.stem == "a"
