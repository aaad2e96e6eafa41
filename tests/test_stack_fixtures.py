"""The servers that other tests stand on."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from model_registry.authorization import mlflow_authorization
from model_registry.store import Store


def test_store_reaches_a_fresh_bucket_pair(store: Store) -> None:
    assert store.put_if_absent("a", b"1")
    assert not store.put_if_absent("a", b"2")
    assert Store.from_environment().get("a") == b"1"


def test_child_processes_reach_the_same_store(store: Store) -> None:
    store.put("from-parent", b"hello")
    code = "from model_registry.store import Store; print(Store.from_environment().get('from-parent').decode())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout == "hello\n"


def test_mlflow_keeps_artifacts_in_s3(mlflow_server: str, store: Store) -> None:
    request = urllib.request.Request(
        f"{mlflow_server}/api/2.0/mlflow-artifacts/artifacts/probe/file.txt",
        data=b"kept",
        headers=mlflow_authorization(os.environ),
        method="PUT",
    )
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200
    assert Store("s3://mlflow").list_objects("mlflow/probe/") == ["mlflow/probe/file.txt"]


def test_inner_ports_of_the_s3_server_refuse_strangers(store: Store) -> None:
    store.put("secret", b"x")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{store.client.meta.endpoint_url}/{store.bucket}/secret")
    assert refused.value.code == 403
    refused.value.close()
