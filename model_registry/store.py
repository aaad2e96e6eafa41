"""The S3 store, the only module that talks to boto3.

Two buckets: a plain one for content-addressed blobs, checkpoints, leases and scratch, and a versioned one
(``<bucket>-records``) for the small documents that are the truth: variants, stage records, measurements, ledger.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlparse

from pydantic import ValidationError

from model_registry.manifest import FileEntry, canonical_json, describe_folder, hash_bytes, hash_file
from model_registry.variant import NewerRecord, Variant

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client

DEFAULT_URI = "s3://winnow"
T = TypeVar("T")

# Botocore's answers, by what can be done about them.
_DENIED = {"403", "401", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "Forbidden"}
_MISSING = {"404", "NoSuchKey", "NotFound", "NoSuchVersion"}
_CONFLICT = {"412", "409", "PreconditionFailed", "ConditionalRequestConflict"}


_TOO_EARLY = {"SlowDown", "RequestTimeout", "OperationAborted", "408", "425", "429"}
_CLOCK = {"RequestTimeTooSkewed", "RequestExpired"}
_FULL = {"XMinioStorageFull", "InsufficientStorage", "QuotaExceeded", "507"}
_UNREADABLE = "unreadable/"
_PAUSES = (1.0, 4.0, 10.0)
"""Seconds before an object that the server has is read again."""


class StoreError(Exception):
    """Base of what the store raises."""


class StoreUnavailable(StoreError):
    """The S3 endpoint cannot be reached or answers 5xx. It may pass: callers retry."""


class StoreDenied(StoreError):
    """The S3 endpoint refuses the credentials. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY and try again."""


class StoreRefused(StoreError):
    """The S3 endpoint refuses what was asked, and would again: too large, not implemented, a clock that differs."""


class ObjectMissing(StoreError):
    """The store has no such object."""


class BucketMissing(StoreError):
    """The store has no such bucket. `winnow up` makes both; elsewhere create them, or name others in WINNOW_STORE."""


class CorruptObject(StoreError):
    """An object's bytes are not those of its hash, or the server cannot read them any more.

    A blob was moved to ``quarantine/``, or noted under ``unreadable/``, and must be computed again.
    """


class Store:
    """Blobs by hash and records by key, over any S3.

    One instance per process or thread pool; boto3 clients are safe to share between threads.
    """

    def __init__(self, uri: str = DEFAULT_URI, *, client: S3Client | None = None) -> None:
        parsed = urlparse(uri)
        if parsed.scheme != "s3" or not parsed.netloc or parsed.path.strip("/"):
            raise ValueError(f"store URI {uri!r} must look like s3://bucket (no path)")
        self.uri = f"s3://{parsed.netloc}"
        self.bucket = parsed.netloc
        self.records_bucket = f"{parsed.netloc}-records"
        self.client: S3Client = client if client is not None else _connect()

    @classmethod
    def from_environment(cls) -> Store:
        """The store named by WINNOW_STORE (default ``s3://winnow``), reached by the standard AWS variables."""
        return cls(os.environ.get("WINNOW_STORE", DEFAULT_URI))

    # -- buckets ------------------------------------------------------------------------------------------------
    def prepare(self) -> None:
        """Create both buckets where missing, and switch versioning on for the records."""
        existing = {b.get("Name") for b in self._call(self.client.list_buckets).get("Buckets", [])}
        for bucket in (self.bucket, self.records_bucket):
            if bucket not in existing:
                self._call(self.client.create_bucket, Bucket=bucket)
        self._call(
            self.client.put_bucket_versioning,
            Bucket=self.records_bucket,
            VersioningConfiguration={"Status": "Enabled"},
        )

    def ping(self) -> None:
        """Cheap proof that the store answers, accepts our keys and has our buckets; raises the named error if not."""
        for bucket in (self.bucket, self.records_bucket):
            try:
                self._call(self.client.head_bucket, Bucket=bucket)
            except ObjectMissing as error:  # the answer to a HEAD has no body that could say more than 404
                raise BucketMissing(f"{error}: there is no bucket {bucket!r}; create it with `winnow up`") from error

    # -- blobs --------------------------------------------------------------------------------------------------
    @staticmethod
    def blob_key(sha256: str) -> str:
        return f"blobs/{sha256[:2]}/{sha256}"

    def publish_folder(self, folder: Path) -> tuple[FileEntry, ...]:
        """Upload every file below the folder under its hash; files already there are not sent again."""
        entries = describe_folder(folder)
        with ThreadPoolExecutor(max_workers=4) as pool:
            list(pool.map(lambda e: self._publish_file(folder / e.path, e), entries))
        return entries

    def publish_bytes(self, data: bytes, path: str) -> FileEntry:
        """Upload bytes as a blob and return their entry under the given manifest path."""
        entry = FileEntry(path=path, sha256=hash_bytes(data), size=len(data))
        if not self.has_blob(entry):
            self._call(
                self.client.put_object,
                Bucket=self.bucket,
                Key=self.blob_key(entry.sha256),
                Body=data,
                Metadata={"sha256": entry.sha256},
            )
            self._is_whole(entry)
        return entry

    def _publish_file(self, path: Path, entry: FileEntry) -> None:
        if not self.has_blob(entry):
            # upload_file switches to multipart for large files and streams from disk.
            self._call(
                self.client.upload_file,
                str(path),
                self.bucket,
                self.blob_key(entry.sha256),
                ExtraArgs={"Metadata": {"sha256": entry.sha256}},
            )
            self._is_whole(entry)

    @cached_property
    def _unreadable(self) -> set[str]:
        """Hashes of blobs that the server has and could not read; they stay until they are sent again.

        It may be the disk, or a part of the server that is away for a while: so nothing is deleted.
        """
        return {key.removeprefix(_UNREADABLE) for key in self.list_objects(_UNREADABLE)}

    def _is_whole(self, entry: FileEntry) -> None:
        if entry.sha256 in self._unreadable:
            self.delete(_UNREADABLE + entry.sha256)
            self._unreadable.discard(entry.sha256)

    def has_blob(self, entry: FileEntry) -> bool:
        """Whether the blob is there, with the right size and the hash stored beside it.

        The content itself is hashed whenever it is opened; here only where the stored hash is missing, which is
        how an object looks that something else has overwritten.
        """
        if entry.sha256 in self._unreadable:
            return False
        key = self.blob_key(entry.sha256)
        try:
            head = self._call(self.client.head_object, Bucket=self.bucket, Key=key)
            if head["ContentLength"] == entry.size and head["Metadata"].get("sha256") == entry.sha256:
                return True
            self.fetch_bytes(entry)
        except (ObjectMissing, CorruptObject):
            return False
        return True

    def fetch(self, entry: FileEntry, destination: Path) -> Path:
        """Download a blob to ``destination`` (a file path) and verify it.

        Raises:
            CorruptObject: the bytes are not those of the hash; the object is quarantined first.
            ObjectMissing: the store has no such blob.
        """
        destination.parent.mkdir(parents=True, exist_ok=True)
        key = self.blob_key(entry.sha256)
        with tempfile.NamedTemporaryFile(dir=destination.parent, prefix=".fetch-", delete=False) as stream:
            partial = Path(stream.name)
        try:
            try:
                self._patiently(self.bucket, key, self.client.download_file, self.bucket, key, str(partial))
            except CorruptObject as error:
                self.put(_UNREADABLE + entry.sha256, str(error).encode())
                self._unreadable.add(entry.sha256)
                raise
            found = hash_file(partial)
            if found != entry.sha256:
                self._quarantine(key, partial, found)
                raise CorruptObject(
                    f"object {key} of {self.uri} hashes to {found}, not to its name; it was moved to quarantine/ "
                    "and will be computed again by the next run"
                )
            partial.replace(destination)
            self._is_whole(entry)
        finally:
            partial.unlink(missing_ok=True)
        return destination

    def fetch_bytes(self, entry: FileEntry) -> bytes:
        """The verified content of a blob, in memory; raises like :meth:`fetch`."""
        with tempfile.TemporaryDirectory() as folder:
            return self.fetch(entry, Path(folder) / "blob").read_bytes()

    def materialise(self, entries: Iterable[FileEntry], folder: Path) -> Path:
        """Download all files into the folder, each verified; returns the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(max_workers=4) as pool:
            list(pool.map(lambda e: self.fetch(e, folder / e.path), entries))
        return folder

    def _quarantine(self, key: str, broken: Path, found: str) -> None:
        """Keep the broken bytes, and remove the object unless another run has put a whole one there meanwhile."""
        target = f"quarantine/{key.rsplit('/', 1)[-1]}-{found[:12]}"
        self._call(self.client.upload_file, str(broken), self.bucket, target)
        try:
            etag = self._call(self.client.head_object, Bucket=self.bucket, Key=key)["ETag"].strip('"')
        except ObjectMissing:
            return
        # The ETag of an object put in one piece is its MD5; one put in several ("-") is known by nothing but its bytes.
        if "-" in etag or etag == hashlib.md5(broken.read_bytes(), usedforsecurity=False).hexdigest():
            self._call(self.client.delete_object, Bucket=self.bucket, Key=key)

    # -- plain objects (checkpoints, leases, pages) -----------------------------------------------------------------
    def put(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> None:
        """Write an object of the plain bucket."""
        self._call(self.client.put_object, Bucket=self.bucket, Key=key, Body=data, ContentType=content_type)

    def get(self, key: str) -> bytes | None:
        """Read an object of the plain bucket; None where there is none."""
        found = self._get(self.bucket, key)
        return None if found is None else found[0]

    def delete(self, key: str) -> None:
        """Delete an object of the plain bucket; deleting what is not there is no error."""
        self._call(self.client.delete_object, Bucket=self.bucket, Key=key)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Create an object of the plain bucket; False where it already exists (If-None-Match: *)."""
        return self._put_conditional(self.bucket, key, data, if_none_match="*")

    def put_if_match(self, key: str, data: bytes, etag: str) -> bool:
        """Replace an object of the plain bucket that still has this etag; False where it changed (If-Match)."""
        return self._put_conditional(self.bucket, key, data, if_match=etag)

    def get_with_etag(self, key: str) -> tuple[bytes, str] | None:
        """Content and etag of an object of the plain bucket; None where there is none."""
        return self._get(self.bucket, key)

    # -- records ------------------------------------------------------------------------------------------------
    def read_record(self, key: str) -> bytes | None:
        """A record's bytes; None where there is none. An outage is an error, never a None."""
        found = self._get(self.records_bucket, key)
        return None if found is None else found[0]

    def create_record(self, key: str, data: bytes) -> bool:
        """Write a record once; False where one is already there (the first writer wins)."""
        return self._put_conditional(self.records_bucket, key, data, if_none_match="*")

    def write_record(self, key: str, data: bytes) -> None:
        """Write or overwrite a record (the bucket keeps the older versions)."""
        self._call(
            self.client.put_object,
            Bucket=self.records_bucket,
            Key=key,
            Body=data,
            ContentType="application/json",
        )

    def delete_record(self, key: str) -> None:
        """Hide a record behind a delete marker (the bucket keeps the older versions)."""
        self._call(self.client.delete_object, Bucket=self.records_bucket, Key=key)

    def list_records(self, prefix: str) -> list[str]:
        """Keys of all records under the prefix, sorted."""
        return sorted(key for key, _, _ in self._list(self.records_bucket, prefix))

    def list_objects(self, prefix: str) -> list[str]:
        """Keys of all plain objects under the prefix, sorted."""
        return sorted(key for key, _, _ in self._list(self.bucket, prefix))

    def usage(self) -> dict[str, int]:
        """Bytes held, by bucket (current versions)."""
        return {b: sum(size for _, size, _ in self._list(b, "")) for b in (self.bucket, self.records_bucket)}

    def inventory(self, bucket: str) -> Iterator[tuple[str, int, float]]:
        """Key, bytes and time of the last change (seconds since the epoch) of all objects in one of both buckets."""
        return self._list(bucket, "")

    def older_versions(self, bucket: str) -> Iterator[tuple[str, str, int, float]]:
        """Key, version, bytes and time of every version that is not the current one, then of all markers of deletion.

        In this order, since a marker that goes before the versions under it would bring the last of them back.
        """
        more: dict[str, Any] = {}
        markers = []
        while True:
            page = self._call(self.client.list_object_versions, Bucket=bucket, **more)
            for item in page.get("Versions", ()):
                if not item["IsLatest"]:
                    yield item["Key"], item["VersionId"], item["Size"], item["LastModified"].timestamp()
            for marker in page.get("DeleteMarkers", ()):
                markers.append((marker["Key"], marker["VersionId"], 0, marker["LastModified"].timestamp()))
            if not page.get("IsTruncated"):
                yield from markers
                return
            more = {"KeyMarker": page["NextKeyMarker"], "VersionIdMarker": page["NextVersionIdMarker"]}

    def remove(self, bucket: str, key: str, version: str | None = None) -> None:
        """Delete an object, or one version of it for good."""
        which = {"VersionId": version} if version else {}
        self._call(self.client.delete_object, Bucket=bucket, Key=key, **which)

    # -- variants -----------------------------------------------------------------------------------------------
    def save_variant(self, variant: Variant) -> None:
        """Write the variant's manifest, last: its files must be in the store already."""
        key, data = f"variants/{variant.digest}.json", variant.to_json()
        if not self.create_record(key, data) and not self._is_variant(key):
            self.write_record(key, data)  # what lay there was damaged

    def _is_variant(self, key: str) -> bool:
        try:
            return Variant.from_json(self.read_record(key) or b"") is not None
        except NewerRecord:
            return True
        except ValidationError:
            return False

    def load_variant(self, digest: str) -> Variant:
        """The variant of that digest; ObjectMissing if the store has none, ValidationError if it was altered,
        NewerRecord if a newer version of Winnow wrote it."""
        key = f"variants/{digest}.json"
        data = self.read_record(key)
        if data is not None:
            return Variant.from_json(data)
        found = self._of_a_stage(digest)
        if found is None:
            raise ObjectMissing(f"{self.uri} has no variant {digest}; list them with `winnow runs`")
        self.create_record(key, found.to_json())
        return found

    def _of_a_stage(self, digest: str) -> Variant | None:
        """The variant from the record of the stage that made it: its own manifest was lost."""

        def look(key: str) -> Variant | None:
            try:
                made = json.loads(self.read_record(key) or b"{}").get("variants") or ()
                return next((Variant.from_json(canonical_json(v)) for v in made if v.get("digest") == digest), None)
            except (ValueError, AttributeError, CorruptObject):  # damaged itself
                return None

        with ThreadPoolExecutor(max_workers=8) as pool:
            return next((found for found in pool.map(look, self.list_records("stages/")[::-1]) if found), None)

    # -- user data ----------------------------------------------------------------------------------------------
    def download(self, uri: str, destination: Path) -> Path:
        """Fetch a user's ``s3://bucket/key`` to a local file."""
        parsed = urlparse(uri)
        destination.parent.mkdir(parents=True, exist_ok=True)
        self._call(self.client.download_file, parsed.netloc, parsed.path.lstrip("/"), str(destination))
        return destination

    def list_uri(self, uri: str) -> list[str]:
        """All ``s3://bucket/key`` URIs below a user's prefix, sorted."""
        parsed = urlparse(uri)
        return sorted(f"s3://{parsed.netloc}/{k}" for k, _, _ in self._list(parsed.netloc, parsed.path.lstrip("/")))

    # -- plumbing -----------------------------------------------------------------------------------------------
    def _get(self, bucket: str, key: str) -> tuple[bytes, str] | None:
        def read() -> tuple[bytes, str]:
            answer = self.client.get_object(Bucket=bucket, Key=key)
            return answer["Body"].read(), answer["ETag"]

        try:
            return self._patiently(bucket, key, read)
        except ObjectMissing:
            return None

    def _patiently(self, bucket: str, key: str, read: Callable[..., T], *args: Any) -> T:
        """Read an object; where the server answers and only this one cannot be read, it is damaged, and no outage.

        Raises:
            CorruptObject: it could not be read again and again, while the server knew it each time.
        """
        for pause in (*_PAUSES, None):
            try:
                return self._call(read, *args)
            except StoreUnavailable as error:
                self._call(self.client.head_object, Bucket=bucket, Key=key)  # raises where the server is away
                if pause is None:
                    raise CorruptObject(
                        f"object {key} of s3://{bucket} is there and cannot be read ({error}); its disk may be "
                        "damaged. What a run can compute again it does, the next time"
                    ) from error
                time.sleep(pause)
        raise AssertionError("the loop returns or raises")

    def _put_conditional(
        self, bucket: str, key: str, data: bytes, *, if_none_match: str = "", if_match: str = ""
    ) -> bool:
        condition = {"IfNoneMatch": if_none_match} if if_none_match else {"IfMatch": if_match}
        try:
            self._call(self.client.put_object, Bucket=bucket, Key=key, Body=data, **condition)
        except _Conflict:
            return False
        except ObjectMissing:  # If-Match on an object that is gone
            return False
        return True

    def _list(self, bucket: str, prefix: str) -> Iterator[tuple[str, int, float]]:
        token: str | None = None
        while True:
            more = {"ContinuationToken": token} if token else {}
            page = self._call(self.client.list_objects_v2, Bucket=bucket, Prefix=prefix, **more)
            for item in page.get("Contents", []):
                yield item["Key"], item["Size"], item["LastModified"].timestamp()
            token = page.get("NextContinuationToken")
            if not token:
                return

    def _call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call boto3 and turn its errors into ours: missing, denied, conflict, unavailable."""
        from boto3.exceptions import Boto3Error, S3UploadFailedError
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

        where = self.client.meta.endpoint_url
        try:
            return function(*args, **kwargs)
        except ClientError as error:
            raise self._translate(error) from error
        except S3UploadFailedError as error:
            cause = error.__context__
            raise (
                self._translate(cause)
                if isinstance(cause, ClientError)
                else StoreUnavailable(f"S3 at {where}: {error}")
            ) from error
        except NoCredentialsError as error:
            raise StoreDenied(
                f"S3 at {where}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from error
        except (BotoCoreError, Boto3Error, ConnectionError) as error:
            raise StoreUnavailable(
                f"S3 at {where} does not answer: {error}; start the stack with `winnow up`"
            ) from error

    def _translate(self, error: Any) -> StoreError:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = str(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
        where, what = self.client.meta.endpoint_url, error.operation_name
        if code in _CONFLICT or status == "412":
            return _Conflict(f"S3 at {where}: {what}: precondition failed")
        if code in _CLOCK:
            return StoreRefused(
                f"S3 at {where}: {what}: {code}: the clocks of this machine and of the store differ by more than it "
                "allows; set them"
            )
        if code in _FULL or status in _FULL:
            return StoreRefused(f"S3 at {where}: {what}: {code}: it is full ({error}); make room or raise its quota")
        if code in _DENIED or status in {"401", "403"}:
            return StoreDenied(
                f"S3 at {where} refused the credentials ({what}: {code}); "
                "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        if code == "NoSuchBucket":  # must not look like a missing object: that would be taken for a cache miss
            return BucketMissing(f"S3 at {where}: {what}: {error}; create the bucket with `winnow up`")
        if code in _MISSING or status == "404":
            return ObjectMissing(f"S3 at {where}: {what}: {code}: {error}")
        if status in {"501", "505"} or (status.startswith("4") and not {code, status} & _TOO_EARLY):
            return StoreRefused(f"S3 at {where} refuses {what}: {code or status}: {error}")
        full = "; if its disk is full, make room" if what.startswith(("Put", "Upload", "Complete")) else ""
        return StoreUnavailable(f"S3 at {where}: {what}: {code or status}: {error}{full}")


class _Conflict(StoreError):
    """A conditional put lost."""


def _connect() -> S3Client:
    """A client for what the environment says now; equal environments share one (making one costs 60 ms)."""
    return _client(tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_"))))


@lru_cache(maxsize=8)
def _client(_environment: tuple[tuple[str, str], ...]) -> S3Client:
    import boto3
    from botocore.config import Config

    # A session of its own: the default one keeps its first credentials and is not safe to share between threads.
    client: S3Client = boto3.session.Session().client(  # endpoint, keys and region come from the standard variables
        "s3",
        region_name=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1",
        config=Config(
            retries={"max_attempts": 3, "mode": "standard"},
            connect_timeout=3,
            read_timeout=30,
            max_pool_connections=16,
            # Not every S3-compatible server knows the newer default checksums.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
    return client
