"""The front asks the store by processes that end: answers and errors are the store's own, and it has no S3 client."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from endpoint_process import ASK, endpoint
from onnx_models import numbered
from patience import PATIENCE
from test_serving_startup import release

from model_registry.ledger import LedgerError
from model_registry.store import BucketMissing, ObjectMissing, Store, StoreDenied, StoreUnavailable
from model_registry.variant import Variant
from serving.asked_store import ask_for_releases, ask_for_variant
from serving.releases import stored_releases
from serving.variant_cache import ManifestAltered

_TELLING = """
import sys
from serving.__main__ import main
try:
    main()
finally:
    print("clients of S3:", sorted({"boto3", "botocore"} & set(sys.modules)), file=sys.stderr)
"""


def test_a_front_that_reads_the_ledger_and_fetches_a_variant_has_no_client_of_s3(store: Store, tmp_path: Path) -> None:
    one, two = (numbered(store, tmp_path, number) for number in (1, 2))
    release(store, "m", 1, one.digest)
    with endpoint(tmp_path / "home", launcher=[sys.executable, "-c", _TELLING]) as running:
        assert running.infer("m", ASK).json()["outputs"][0]["data"] == [1.0, 1.0]
        running.deploy("m", "2", two.digest)
        assert running.infer("m", ASK).json()["outputs"][0]["data"] == [2.0, 2.0]
        assert running.terminate() == 0
    assert "clients of S3: []" in running.log


def test_releases_are_those_that_the_store_says(store: Store, tmp_path: Path) -> None:
    one = numbered(store, tmp_path, 1)
    release(store, "good", 3, one.digest)
    release(store, "broken", 1, one.digest)
    store.write_record("ledger/broken/00000001.json", b"{}")
    told, known = ask_for_releases(), stored_releases()
    assert told.keys() == known.keys() == {"good", "broken"}
    good, broken = told["good"].champion, told["broken"].champion
    assert not isinstance(good, LedgerError) and (good.to_version, good.digest) == (3, one.digest)
    assert isinstance(broken, LedgerError) and str(broken) == str(known["broken"].champion)


def test_errors_are_those_of_the_store_and_of_the_disk(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (numbered(store, tmp_path, number) for number in (1, 2))
    folder = tmp_path / "variant"
    folder.mkdir()
    ask_for_variant(one.digest, folder)
    assert Variant.from_json((folder / "variant.json").read_bytes()) == one
    with pytest.raises(ObjectMissing, match="0000"):
        ask_for_variant("0" * 64, folder)
    for altered in (two.to_json(), one.to_json().replace(b'"onnx"', b'"xnno"')):
        store.write_record(f"variants/{one.digest}.json", altered)
        with pytest.raises(ManifestAltered, match=one.digest):
            ask_for_variant(one.digest, folder)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError) as found:
        ask_for_variant(two.digest, tmp_path / "file")
    assert found.value.errno == errno.ENOTDIR
    with monkeypatch.context() as environment:
        environment.setenv("WINNOW_STORE", "s3://nobody-made-this")
        with pytest.raises(BucketMissing):
            ask_for_releases()
    with monkeypatch.context() as environment:
        environment.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with pytest.raises(StoreDenied):
            ask_for_releases()


def test_a_process_that_dies_or_cannot_be_started_is_an_outage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dying = tmp_path / "dying"
    dying.write_text("#!/bin/sh\nkill -9 $$\n")
    dying.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(dying))
    with pytest.raises(StoreUnavailable, match="SIGKILL"):
        ask_for_releases()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    with pytest.raises(StoreUnavailable, match="no process can be started"):
        ask_for_releases()


def test_it_ends_with_the_front_though_s3_keeps_it_waiting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with subprocess.Popen(
            [sys.executable, "-m", "serving.store_process", "releases"],
            stdin=subprocess.PIPE,
            env={**os.environ, **keys, "AWS_ENDPOINT_URL_S3": url},
        ) as process:
            assert process.stdin is not None
            connection, _ = silent.accept()  # asked, and never answered
            assert process.poll() is None
            process.stdin.close()
            assert process.wait(timeout=PATIENCE) == 1
            connection.close()
