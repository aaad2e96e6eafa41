"""The S3 store: blobs by hash, records by key, plain objects, and what lies where."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from model_registry.blobs import Blobs
from model_registry.records import Records
from model_registry.s3_buckets import DEFAULT_URI
from model_registry.store_errors import (
    BucketMissing,
    CorruptObject,
    ObjectMissing,
    StoreDenied,
    StoreError,
    StoreRefused,
    StoreUnavailable,
)

__all__ = [
    "DEFAULT_URI",
    "BucketMissing",
    "CorruptObject",
    "ObjectMissing",
    "Store",
    "StoreDenied",
    "StoreError",
    "StoreRefused",
    "StoreUnavailable",
]


class Store(Blobs, Records):
    """Blobs by hash and records by key, over any S3.

    One instance per process or thread pool; boto3 clients are safe to share between threads.
    """

    # -- plain objects (checkpoints, leases, pages) -----------------------------------------------------------------
    def put(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> None:
        """Write an object of the plain bucket."""
        self._put(self.bucket, key, data, {"ContentType": content_type})

    def get(self, key: str) -> bytes | None:
        """Read an object of the plain bucket; None where there is none."""
        found = self._get(self.bucket, key)
        return None if found is None else found[0]

    def delete(self, key: str) -> None:
        """Delete an object of the plain bucket; deleting what is not there is no error."""
        self.remove(self.bucket, key)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Create an object of the plain bucket; False where it already exists (If-None-Match: *)."""
        return self._put_conditional(self.bucket, key, data, if_none_match="*")

    def put_if_match(self, key: str, data: bytes, etag: str) -> bool:
        """Replace an object of the plain bucket that still has this etag; False where it changed (If-Match)."""
        return self._put_conditional(self.bucket, key, data, if_match=etag)

    def get_with_etag(self, key: str) -> tuple[bytes, str] | None:
        """Content and etag of an object of the plain bucket; None where there is none."""
        return self._get(self.bucket, key)

    # -- what there is ------------------------------------------------------------------------------------------
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

    # -- user data ----------------------------------------------------------------------------------------------
    def download(self, uri: str, destination: Path) -> Path:
        """Fetch a user's ``s3://bucket/key`` to a local file."""
        parsed = urlparse(uri)
        destination.parent.mkdir(parents=True, exist_ok=True)
        self._download(parsed.netloc, parsed.path.lstrip("/"), destination)
        return destination

    def put_uri(self, uri: str, data: bytes) -> None:
        """Write a user's ``s3://bucket/key``."""
        parsed = urlparse(uri)
        self._put(parsed.netloc, parsed.path.lstrip("/"), data, {})

    def put_uri_if_absent(self, uri: str, data: bytes) -> bool:
        """Create a user's ``s3://bucket/key``; False where it already exists (If-None-Match: *)."""
        parsed = urlparse(uri)
        return self._put_conditional(parsed.netloc, parsed.path.lstrip("/"), data, if_none_match="*")

    def etag_of(self, uri: str) -> str:
        """Of a user's ``s3://bucket/key``; changes with its content."""
        parsed = urlparse(uri)
        found: str = self._call(self.client.head_object, Bucket=parsed.netloc, Key=parsed.path.lstrip("/"))["ETag"]
        return found

    def list_uri(self, uri: str) -> list[str]:
        """All ``s3://bucket/key`` URIs below a user's prefix, sorted."""
        parsed = urlparse(uri)
        return sorted(f"s3://{parsed.netloc}/{k}" for k, _, _ in self._list(parsed.netloc, parsed.path.lstrip("/")))
