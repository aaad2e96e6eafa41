"""The store on a real S3 server: blobs by hash, corruption, conditional writes, and errors with names."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError
from botocore.stub import Stubber

from model_registry.manifest import FileEntry, canonical_json, hash_bytes, hash_file
from model_registry.store import (
    BucketMissing,
    CorruptObject,
    ObjectMissing,
    Store,
    StoreDenied,
    StoreError,
    StoreRefused,
    StoreUnavailable,
)
from model_registry.variant import TensorSpec, Variant


def variant(store: Store, data: bytes = b"model") -> Variant:
    spec = TensorSpec(name="x", datatype="FP32", shape=(-1, 2))
    made = Variant(
        name="v",
        stage="export",
        format="onnx",
        files=(store.publish_bytes(data, "model.onnx"),),
        inputs=(spec,),
        outputs=(spec,),
    )
    store.save_variant(made)
    return made


# -- blobs ------------------------------------------------------------------------------------------------------
def test_a_folder_goes_up_and_comes_back(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "assets").mkdir(parents=True)
    (source / "model.onnx").write_bytes(b"\x00\xff" * 1000)
    (source / "assets" / "labels.json").write_bytes(b"[]")
    (source / "empty").write_bytes(b"")
    entries = store.publish_folder(source)
    target = store.materialise(entries, tmp_path / "target")
    assert {p.relative_to(target): p.read_bytes() for p in target.rglob("*") if p.is_file()} == {
        p.relative_to(source): p.read_bytes() for p in source.rglob("*") if p.is_file()
    }
    assert not list(target.rglob(".fetch-*"))


def test_a_large_file_goes_in_parts(store: Store, tmp_path: Path) -> None:
    big = tmp_path / "in"
    big.mkdir()
    (big / "weights").write_bytes(bytes(range(256)) * (20 << 12))  # 20 MiB: beyond boto3's 8 MiB limit for one part
    (entry,) = store.publish_folder(big)
    assert store.has_blob(entry)
    assert store.fetch(entry, tmp_path / "out").stat().st_size == 20 << 20


def test_whatever_is_large_goes_in_parts(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 takes no more than 5 GB in one piece, and no part but the last below 5 MiB."""
    monkeypatch.setattr("model_registry.s3_buckets.PART_BYTES", 5 << 20)
    whole, parts = list[int](), list[str]()
    store.client.meta.events.register(
        "before-call.s3.PutObject", lambda params, **_: whole.append(int(params["headers"].get("Content-Length", 0)))
    )
    store.client.meta.events.register("before-call.s3.UploadPart", lambda params, **_: parts.append(params["url_path"]))
    large = bytes(range(256)) * (24 << 10)  # 6 MiB
    entry = store.publish_bytes(large, "a")
    store.put("checkpoint", large, content_type="text/plain")
    store.write_record("stages/a.json", large)
    (tmp_path / "b").write_bytes(large[:-1])
    (file,) = store.publish_folder(tmp_path)
    assert len(parts) == 2 * 4 and max(whole, default=0) <= 5 << 20
    assert store.has_blob(entry) and store.fetch_bytes(entry) == large == store.get("checkpoint")
    assert store.read_record("stages/a.json") == large and store.fetch_bytes(file) == large[:-1]
    assert store.client.head_object(Bucket=store.bucket, Key="checkpoint")["ContentType"] == "text/plain"
    store.client.meta.events.register("before-call.s3.GetObject", lambda params, **_: parts.append("read"))
    store.download(f"{store.uri}/checkpoint", tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == large and parts.count("read") == 2
    store.put(store.blob_key(entry.sha256), large[::-1])
    with pytest.raises(CorruptObject):
        store.fetch_bytes(entry)
    assert not store.has_blob(entry) and len([p for p in parts if p.startswith("/quarantine")]) == 2


def test_equal_content_is_sent_once(store: Store, tmp_path: Path) -> None:
    sent = []
    store.client.meta.events.register("before-call.s3.PutObject", lambda params, **_: sent.append(params))
    first = store.publish_bytes(b"same", "a")
    assert len(sent) == 1
    (tmp_path / "c").write_bytes(b"same")
    others = (store.publish_bytes(b"same", "b"), *store.publish_folder(tmp_path))
    assert len(sent) == 1
    assert {entry.sha256 for entry in others} == {first.sha256} and [entry.path for entry in others] == ["b", "c"]


def test_a_corrupt_blob_is_quarantined_not_served(store: Store, tmp_path: Path) -> None:
    entry = store.publish_bytes(b"good", "f")
    store.put(store.blob_key(entry.sha256), b"evil")
    with pytest.raises(CorruptObject, match="moved to quarantine/"):
        store.fetch(entry, tmp_path / "f")
    assert list(tmp_path.iterdir()) == []  # no half-written, no wrong file
    assert not store.has_blob(entry)
    (moved,) = store.list_objects("quarantine/")
    assert store.get(moved) == b"evil"
    with pytest.raises(ObjectMissing):
        store.fetch_bytes(entry)
    assert store.fetch_bytes(store.publish_bytes(b"good", "f")) == b"good"  # computed again


def test_a_blob_that_was_made_whole_meanwhile_is_left_alone(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = store.publish_bytes(b"good", "f")
    store.put(store.blob_key(entry.sha256), b"evil")

    def hash_late(path: Path) -> str:
        """Another run notices first, and has made the blob again before we know what we hold."""
        store.put(store.blob_key(entry.sha256), b"good")
        return hash_file(path)

    with monkeypatch.context() as patch:
        patch.setattr("model_registry.blobs.hash_file", hash_late)
        with pytest.raises(CorruptObject):
            store.fetch(entry, tmp_path / "f")
    assert store.fetch_bytes(entry) == b"good"
    (moved,) = store.list_objects("quarantine/")
    assert store.get(moved) == b"evil"


def test_reading_into_memory_leaves_no_file_to_a_killed_process(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = store.publish_bytes(b"good", "f")
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    assert store.fetch_bytes(entry) == b"good"


def test_a_truncated_blob_is_not_there(store: Store) -> None:
    entry = store.publish_bytes(b"good", "f")
    key = store.blob_key(entry.sha256)
    store.put(key, b"goo")
    assert not store.has_blob(entry)
    store.client.put_object(Bucket=store.bucket, Key=key, Body=b"goo", Metadata={"sha256": entry.sha256})
    assert not store.has_blob(entry)
    store.publish_bytes(b"good", "f")  # and publishing it again repairs it
    assert store.fetch_bytes(entry) == b"good"


def test_a_fetch_replaces_what_was_there(store: Store, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    store.fetch(store.publish_bytes(b"new", "f"), tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"new"


# -- variants ---------------------------------------------------------------------------------------------------
def test_a_variant_is_found_by_its_digest(store: Store) -> None:
    made = variant(store)
    assert store.load_variant(made.digest) == made
    with pytest.raises(ObjectMissing, match="has no variant 0000"):
        store.load_variant("0" * 64)


def test_an_altered_manifest_does_not_load(store: Store) -> None:
    made = variant(store)
    text = made.to_json().replace(b'"intra_op_threads":1', b'"intra_op_threads":9')
    store.write_record(f"variants/{made.digest}.json", text)
    with pytest.raises(ValueError, match="its content hashes to"):
        store.load_variant(made.digest)


# -- conditional writes -----------------------------------------------------------------------------------------
def test_of_many_creators_one_wins(store: Store) -> None:
    for round_ in range(2):
        with ThreadPoolExecutor(4) as pool:
            plain = list(pool.map(lambda i, r=round_: store.put_if_absent(f"k{r}", b"%d" % i), range(4)))
            record = list(pool.map(lambda i, r=round_: store.create_record(f"k{r}", b"%d" % i), range(4)))
        assert (plain.count(True), record.count(True)) == (1, 1)
        assert store.get(f"k{round_}") == b"%d" % plain.index(True)
        assert store.read_record(f"k{round_}") == b"%d" % record.index(True)


def test_a_replacement_needs_the_etag_that_is_there(store: Store) -> None:
    store.put("k", b"one")
    found = store.get_with_etag("k")
    assert found is not None
    assert store.put_if_match("k", b"two", found[1])
    assert not store.put_if_match("k", b"three", found[1])
    assert store.get("k") == b"two"
    store.delete("k")
    assert not store.put_if_match("k", b"four", found[1])
    assert store.get("k") is None and store.get_with_etag("k") is None
    store.delete("k")  # what is not there can be deleted


def test_a_replacement_of_what_is_gone_fails_where_s3_answers_404(store: Store) -> None:
    """As Amazon's does; the server of these tests answers 412."""
    with Stubber(store.client) as server:
        server.add_client_error("put_object", "NoSuchKey", http_status_code=404)
        assert not store.put_if_match("k", b"two", '"etag"')
        server.assert_no_pending_responses()


def test_records_keep_their_older_versions(store: Store) -> None:
    for data in (b"1", b"2", b"3"):
        store.write_record("stages/a.json", data)
    store.delete_record("stages/a.json")
    assert store.read_record("stages/a.json") is None
    kept = store.client.list_object_versions(Bucket=store.records_bucket, Prefix="stages/")
    assert len(kept.get("Versions", [])) == 3
    assert store.create_record("stages/a.json", b"4")  # a hidden one may be written again


def test_listing_goes_on_past_one_page(store: Store) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda i: store.put(f"many/{i:05d}", b""), range(1005)))
    assert len(store.list_objects("many/")) == 1005
    assert store.list_objects("many/0000") == [f"many/{i:05d}" for i in range(10)]


def test_usage_and_user_data(store: Store, tmp_path: Path) -> None:
    store.put("data/a.csv", b"1,2\n")
    store.put("data/b.csv", b"3,4\n")
    assert store.usage() == {store.bucket: 8, store.records_bucket: 0}
    assert store.list_uri(f"{store.uri}/data/") == [f"{store.uri}/data/a.csv", f"{store.uri}/data/b.csv"]
    assert store.download(f"{store.uri}/data/b.csv", tmp_path / "deep" / "b.csv").read_bytes() == b"3,4\n"
    with pytest.raises(ObjectMissing):
        store.download(f"{store.uri}/data/c.csv", tmp_path / "c.csv")


def test_prepare_twice_is_harmless(store: Store) -> None:
    store.write_record("a", b"1")
    store.prepare()
    assert store.read_record("a") == b"1"


# -- errors -----------------------------------------------------------------------------------------------------
ANY = FileEntry(path="f", sha256=hash_bytes(b"x"), size=1)


def calls(store: Store, tmp_path: Path) -> dict[str, Any]:
    folder = tmp_path / "folder"
    folder.mkdir(exist_ok=True)
    (folder / "f").write_bytes(b"x")
    return {
        "ping": store.ping,
        "get": lambda: store.get("k"),
        "put": lambda: store.put("k", b""),
        "create": lambda: store.create_record("k", b""),
        "absent": lambda: store.put_if_absent("k", b""),
        "list": lambda: store.list_records(""),
        "publish": lambda: store.publish_folder(folder),
        "fetch": lambda: store.fetch(ANY, tmp_path / "out"),
        "has": lambda: store.has_blob(ANY),
    }


NAMES = ["ping", "get", "put", "create", "absent", "list", "publish", "fetch", "has"]


@pytest.mark.parametrize("name", NAMES)
def test_wrong_keys_are_denied(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreDenied, match="check AWS_ACCESS_KEY_ID"):
        calls(Store(store.uri), tmp_path)[name]()


@pytest.mark.parametrize("name", NAMES)
def test_a_server_that_is_down_is_unavailable(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, not listening: refused at once
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(StoreUnavailable, match="start the stack with `winnow up`"):
            calls(Store(store.uri), tmp_path)[name]()


def test_both_buckets_are_asked_for(store: Store) -> None:
    store.client.delete_bucket(Bucket=store.records_bucket)
    with pytest.raises(BucketMissing, match=f"{store.bucket}-records"):
        store.ping()


@pytest.mark.parametrize("name", ["ping", "get", "list"])
def test_a_missing_bucket_is_not_a_missing_object(store: Store, tmp_path: Path, name: str) -> None:
    # (SeaweedFS makes a bucket by itself when something is written to it.)
    with pytest.raises(BucketMissing, match="winnow up"):
        calls(Store(f"{store.uri}-nowhere"), tmp_path)[name]()


def test_no_keys_at_all_are_denied(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(StoreDenied, match="set AWS_ACCESS_KEY_ID"):
        Store(store.uri).ping()


@pytest.fixture
def cut_short() -> Iterator[str]:
    """A server that promises 1000 bytes, sends 10 and hangs up; its URL."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                request = connection.recv(65536)
                connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nETag: "e"\r\n\r\n')
                if not request.startswith(b"HEAD"):
                    connection.sendall(b"0123456789")

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


@pytest.mark.parametrize("name", ["get", "fetch"])
def test_answers_cut_short_again_and_again_are_an_error(
    store: Store, cut_short: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("model_registry.s3_buckets._PAUSES", (0.0,))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", cut_short)
    with pytest.raises((StoreUnavailable, CorruptObject)):
        calls(Store(store.uri), tmp_path)[name]()
    assert not (tmp_path / "out").exists()


class Damaged:
    """A client of a server that has one object and cannot read it, ``times`` times, as after a flipped byte on disk."""

    def __init__(self, client: Any, key: str, times: int) -> None:
        self._client, self._key, self.times = client, key, times

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def _fail(self, key: str) -> None:
        if key == self._key and self.times:
            self.times -= 1
            error = {"Error": {"Code": "InternalError"}, "ResponseMetadata": {"HTTPStatusCode": 500}}
            raise ClientError(error, "GetObject")  # type: ignore[arg-type]

    def get_object(self, **asked: Any) -> Any:
        self._fail(asked["Key"])
        return self._client.get_object(**asked)

    def download_file(self, bucket: str, key: str, path: str, **how: Any) -> None:
        self._fail(key)
        self._client.download_file(bucket, key, path, **how)


def test_a_blob_that_cannot_be_read_is_made_again_and_nothing_is_deleted(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_registry.s3_buckets._PAUSES", (0.0, 0.0))
    entry = store.publish_bytes(b"precious", "a.bin")
    key = Store.blob_key(entry.sha256)
    shaky = Store(store.uri, client=Damaged(store.client, key, 2))  # type: ignore[arg-type]
    assert shaky.fetch_bytes(entry) == b"precious", "it passed"
    broken = Store(store.uri, client=Damaged(store.client, key, 9))  # type: ignore[arg-type]
    with pytest.raises(CorruptObject, match="is there and cannot be read"):
        broken.fetch(entry, tmp_path / "out")
    assert not (tmp_path / "out").exists() and store.get(key) == b"precious"
    later = Store(store.uri)
    assert not broken.has_blob(entry) and not later.has_blob(entry), "it is to be computed again"
    assert later.publish_bytes(b"precious", "a.bin") == entry
    assert later.has_blob(entry) and Store(store.uri).has_blob(entry)
    assert store.list_objects("unreadable/") == []


def test_a_server_that_takes_long_to_say_no_is_not_asked_again_and_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_registry.s3_buckets._PATIENCE", 0.0)
    entry = store.publish_bytes(b"rotten", "a.bin")
    client = Damaged(store.client, Store.blob_key(entry.sha256), 9)
    with pytest.raises(CorruptObject):
        Store(store.uri, client=client).fetch_bytes(entry)  # type: ignore[arg-type]
    assert client.times == 8, "asked once"
    assert not Store(store.uri).has_blob(entry)
    store.publish_bytes(b"rotten", "a.bin")


def test_a_blob_that_can_be_read_again_is_there_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model_registry.s3_buckets._PAUSES", ())
    entry = store.publish_bytes(b"away for a while", "a.bin")
    client = Damaged(store.client, Store.blob_key(entry.sha256), 1)
    with pytest.raises(CorruptObject):
        Store(store.uri, client=client).fetch_bytes(entry)  # type: ignore[arg-type]
    assert not Store(store.uri).has_blob(entry)
    assert Store(store.uri).fetch_bytes(entry) == b"away for a while"
    assert Store(store.uri).has_blob(entry)


def test_a_record_that_cannot_be_read_is_no_outage(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model_registry.s3_buckets._PAUSES", (0.0,))
    store.write_record("stages/k.json", b"{}")
    broken = Store(store.uri, client=Damaged(store.client, "stages/k.json", 9))  # type: ignore[arg-type]
    with pytest.raises(CorruptObject, match="its disk may be damaged"):
        broken.read_record("stages/k.json")


def test_a_lost_manifest_is_written_again_from_the_stage_that_made_it(store: Store) -> None:
    made = variant(store, b"weights of a champion")
    store.delete_record(f"variants/{made.digest}.json")
    store.write_record("stages/a.json", b"{damaged")
    store.write_record("stages/b.json", canonical_json({"variants": [made.model_dump(mode="json", by_alias=True)]}))
    store.write_record("stages/c.json", b'{"variants": null}')
    assert store.load_variant(made.digest) == made
    assert store.read_record(f"variants/{made.digest}.json") == made.to_json()
    with pytest.raises(ObjectMissing):
        store.load_variant("0" * 64)


@pytest.mark.parametrize(
    ("status", "code", "kind", "says"),
    [
        (400, "EntityTooLarge", StoreRefused, "EntityTooLarge"),
        (400, "KeyTooLongError", StoreRefused, "KeyTooLong"),
        (405, "MethodNotAllowed", StoreRefused, "refuses PutObject"),
        (501, "NotImplemented", StoreRefused, "NotImplemented"),
        (403, "RequestTimeTooSkewed", StoreRefused, "the clocks of this machine and of the store differ"),
        (507, "XMinioStorageFull", StoreRefused, "it is full"),
        (503, "SlowDown", StoreUnavailable, "SlowDown"),
        (400, "RequestTimeout", StoreUnavailable, "RequestTimeout"),
        (500, "InternalError", StoreUnavailable, "if its disk is full, make room"),
        (403, "AccessDenied", StoreDenied, "refused the credentials"),
    ],
)
def test_what_would_fail_again_is_no_outage(status: int, code: str, kind: type[StoreError], says: str) -> None:
    def refuse(**_asked: Any) -> None:
        error = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
        raise ClientError(error, "PutObject")  # type: ignore[arg-type]

    client = SimpleNamespace(meta=SimpleNamespace(endpoint_url="http://x"), put_object=refuse)
    with pytest.raises(kind, match=says):
        Store("s3://b", client=client).put("k", b"")  # type: ignore[arg-type]


@pytest.mark.parametrize("uri", ["winnow", "s3://", "s3://bucket/path", "http://bucket", "/tmp/x"])
def test_a_store_uri_is_a_bucket(uri: str) -> None:
    with pytest.raises(ValueError, match="must look like s3://bucket"):
        Store(uri)


def test_errors_share_a_base() -> None:
    for error in (StoreUnavailable, StoreDenied, ObjectMissing, CorruptObject, BucketMissing):
        assert issubclass(error, StoreError)
