"""Data sets answered on the nodes of a Ray cluster: the same bytes as here, each once, also when nodes are lost."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from nodes import kill_node, kill_one_at_work, left_of, on_nodes, running_nodes
from onnx_models import digits, publish
from test_batch_answers import upload, write_shards

from flows.batch import shard_processes
from flows.batch.batch_answers import answer_all
from model_registry.store import Store
from model_registry.variant import Variant
from tasks.running import ray_nodes
from tasks.running.errors import SpecError
from tasks.running.ray_local_cluster import LocalCluster

FILES = 16


@pytest.fixture
def variant(store: Store, tmp_path: Path) -> Variant:
    folder = tmp_path / "model"
    return publish(store, folder, digits(folder))


def answers(store: Store, prefix: str) -> dict[str, str]:
    """Etags of the answers by their names."""
    uris = store.list_uri(f"s3://{store.bucket}/{prefix}/")
    return {uri.rpartition("/")[2]: store.etag_of(uri) for uri in uris if uri.endswith(".parquet")}


def test_files_of_this_machine_are_refused_before_a_node_looks_for_them(
    store: Store, variant: Variant, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=r"the nodes cannot reach the source .*rows; give s3://bucket/prefix"):
        answer_all(store, variant, str(tmp_path / "rows"), "s3://b/answers", place="ray")
    with pytest.raises(SpecError, match="cannot reach the target"):
        answer_all(store, variant, "s3://b/rows", str(tmp_path / "answers"), place="ray")


@pytest.mark.ray
@pytest.mark.parametrize("workers", [True, False], ids=["dead", "living on"])
def test_a_lost_node_loses_and_doubles_nothing(
    store: Store,
    variant: Variant,
    tmp_path: Path,
    cluster: LocalCluster,
    workers: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, logger="winnow.ray")
    write_shards(tmp_path / "rows", files=FILES, rows=3000)
    source, bucket = upload(store, tmp_path / "rows", "rows"), f"s3://{store.bucket}"
    here = answer_all(store, variant, source, f"{bucket}/here", workers=1, keep=["id"])
    lost, seen = list[str](), list[str]()

    def strike(done: int, _: int) -> None:
        if done == 3:
            seen.extend(on_nodes("flows.batch.shard_worker"))
            lost.append(kill_one_at_work(workers=workers))

    how: dict[str, Any] = {"keep": ["id"], "workers": 2, "place": "ray"}
    there = answer_all(store, variant, source, f"{bucket}/there", **how, on_progress=strike)
    if workers:  # else those of the node may answer all that is left before the cluster ends them
        assert f"node {lost[0][:8]} was lost, and its files are given to others" in caplog.text
    assert (there.shards, there.computed) == (FILES, FILES)
    assert there.root == here.root and answers(store, "there") == answers(store, "here")
    again = answer_all(store, variant, source, f"{bucket}/there", **how)
    assert (again.computed, again.root) == (0, here.root)
    assert not any(ray_nodes.busy.values()) and seen and left_of("flows.batch.shard_worker") == []
    manifest = json.loads(store.client.get_object(Bucket=store.bucket, Key="there/manifest.json")["Body"].read())
    assert {line["answer"] for line in manifest["answers"]} == set(answers(store, "here"))
    cluster.add_node()


@pytest.mark.ray
def test_what_is_wrong_with_the_data_is_said_as_it_is_here(
    store: Store, variant: Variant, tmp_path: Path, cluster: LocalCluster
) -> None:
    write_shards(tmp_path / "rows", files=2, rows=10)
    source = upload(store, tmp_path / "rows", "rows")
    for place in ("local", "ray"):
        with pytest.raises(Exception, match=r"part-000\.parquet has no column 'name' to keep") as told:
            answer_all(store, variant, source, f"s3://{store.bucket}/no", workers=1, keep=["name"], place=place)
        assert type(told.value).__name__ == "ShardFailed"


@pytest.mark.ray
def test_without_any_node_left_it_ends_and_says_so(
    store: Store, variant: Variant, tmp_path: Path, cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_processes, "_WAIT_FOR_NODES", 3.0)
    write_shards(tmp_path / "rows", files=FILES, rows=3000)
    source = upload(store, tmp_path / "rows", "rows")

    def strike(done: int, _: int) -> None:
        if done == 1:
            for node in running_nodes():
                kill_node(node)

    with pytest.raises(SpecError, match=r"no node of the cluster can run this.*; node \w{8} was lost"):
        answer_all(store, variant, source, f"s3://{store.bucket}/none", workers=2, place="ray", on_progress=strike)
    assert not any(ray_nodes.busy.values())
    for _ in range(2):
        cluster.add_node()
    assert answer_all(store, variant, source, f"s3://{store.bucket}/none", workers=2, place="ray").shards == FILES
