"""The two buckets of a store, and the only calls of boto3: how objects of any bucket are sent, read and listed.

A plain bucket for content-addressed blobs, checkpoints, leases and scratch, and a versioned one (``<bucket>-records``)
for the small documents that are the truth: variants, stage records, measurements, ledger.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import urlparse

from model_registry.store_errors import (
    BucketMissing,
    ChangedMeanwhile,
    CorruptObject,
    ObjectMissing,
    StoreDenied,
    StoreUnavailable,
    named_error,
)

if TYPE_CHECKING:
    from boto3.s3.transfer import TransferConfig
    from types_boto3_s3.client import S3Client

DEFAULT_URI = "s3://winnow"
T = TypeVar("T")

PART_BYTES = 8 << 20
"""What is larger goes and comes in parts of this size: S3 takes 5 GB in one piece, and 5 TB in parts. Of more than
10 000 of them, which is the most that S3 takes, boto3 makes fewer and larger ones."""
_PAUSES = (1.0, 4.0, 10.0)
"""Seconds before an object that the server has is read again."""
_PATIENCE = 20.0
"""Seconds of trying after which it is not read again: a server can take half a minute each time to say no."""


class Buckets:
    """Two buckets on one S3 server; safe to share between threads."""

    def __init__(self, uri: str = DEFAULT_URI, *, client: S3Client | None = None) -> None:
        parsed = urlparse(uri)
        if parsed.scheme != "s3" or not parsed.netloc or parsed.path.strip("/"):
            raise ValueError(f"store URI {uri!r} must look like s3://bucket (no path)")
        self.uri = f"s3://{parsed.netloc}"
        self.bucket = parsed.netloc
        self.records_bucket = f"{parsed.netloc}-records"
        self.client: S3Client = client if client is not None else _connect()

    @classmethod
    def from_environment(cls) -> Self:
        """The store named by WINNOW_STORE (default ``s3://winnow``), reached by the standard AWS variables."""
        return cls(os.environ.get("WINNOW_STORE", DEFAULT_URI))

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

    # -- objects of any bucket ----------------------------------------------------------------------------------
    def _put(self, bucket: str, key: str, content: bytes | Path, about: Mapping[str, Any]) -> None:
        """Write an object, in parts where it is large; ``about``: its Metadata, ContentType."""
        if isinstance(content, Path):
            self._call(self.client.upload_file, str(content), bucket, key, ExtraArgs=about, Config=_parts())
        elif len(content) > PART_BYTES:
            self._call(self.client.upload_fileobj, io.BytesIO(content), bucket, key, ExtraArgs=about, Config=_parts())
        else:  # boto3 would start threads for it
            self._call(self.client.put_object, Bucket=bucket, Key=key, Body=content, **about)

    def remove(self, bucket: str, key: str, version: str | None = None) -> None:
        """Delete an object, or one version of it for good; deleting what is not there is no error."""
        which = {"VersionId": version} if version else {}
        self._call(self.client.delete_object, Bucket=bucket, Key=key, **which)

    def _download(self, bucket: str, key: str, path: Path) -> None:
        self._call(self.client.download_file, bucket, key, str(path), Config=_parts())

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
        began = time.monotonic()
        for pause in (*_PAUSES, None):
            try:
                return self._call(read, *args)
            except StoreUnavailable as error:
                self._call(self.client.head_object, Bucket=bucket, Key=key)  # raises where the server is away
                if pause is None or time.monotonic() - began > _PATIENCE:
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
        except ChangedMeanwhile:
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
            raise named_error(error, where) from error
        except S3UploadFailedError as error:
            cause = error.__context__
            raise (
                named_error(cause, where)
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


def _parts() -> TransferConfig:
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES)


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
