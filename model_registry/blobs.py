"""Blobs: files by the hash of their content, verified whenever they are opened."""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from model_registry.manifest import FileEntry, describe_folder, hash_bytes, hash_file
from model_registry.s3_buckets import Buckets
from model_registry.store_errors import CorruptObject, ObjectMissing

_UNREADABLE = "unreadable/"


class Blobs(Buckets):
    """``blobs/<2>/<sha256>`` of the plain bucket."""

    @staticmethod
    def blob_key(sha256: str) -> str:
        return f"blobs/{sha256[:2]}/{sha256}"

    def publish_folder(self, folder: Path) -> tuple[FileEntry, ...]:
        """Upload every file below the folder under its hash; files already there are not sent again."""
        entries = describe_folder(folder)
        with ThreadPoolExecutor(max_workers=4) as pool:
            list(pool.map(lambda e: self._publish(folder / e.path, e), entries))
        return entries

    def publish_bytes(self, data: bytes, path: str) -> FileEntry:
        """Upload bytes as a blob and return their entry under the given manifest path."""
        entry = FileEntry(path=path, sha256=hash_bytes(data), size=len(data))
        self._publish(data, entry)
        return entry

    def _publish(self, content: bytes | Path, entry: FileEntry) -> None:
        if not self.has_blob(entry):
            self._put(self.bucket, self.blob_key(entry.sha256), content, {"Metadata": {"sha256": entry.sha256}})
            self._is_whole(entry)

    @cached_property
    def _unreadable(self) -> set[str]:
        """Hashes of blobs that the server has and could not read; they stay until they are sent again.

        It may be the disk, or a part of the server that is away for a while: so nothing is deleted.
        """
        return {key.removeprefix(_UNREADABLE) for key, _, _ in self._list(self.bucket, _UNREADABLE)}

    def _is_whole(self, entry: FileEntry) -> None:
        if entry.sha256 in self._unreadable:
            self.remove(self.bucket, _UNREADABLE + entry.sha256)
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
            with self._noted_where_unreadable(entry):
                self._patiently(self.bucket, key, self._download, self.bucket, key, partial)
            self._verify(entry, partial, hash_file(partial))
            partial.replace(destination)
        finally:
            partial.unlink(missing_ok=True)
        return destination

    def fetch_bytes(self, entry: FileEntry) -> bytes:
        """The verified content of a blob, in memory; raises like :meth:`fetch`."""
        key = self.blob_key(entry.sha256)
        with self._noted_where_unreadable(entry):
            found = self._get(self.bucket, key)
        if found is None:
            raise ObjectMissing(f"{self.uri} has no object {key}")
        self._verify(entry, found[0], hash_bytes(found[0]))
        return found[0]

    @contextmanager
    def _noted_where_unreadable(self, entry: FileEntry) -> Iterator[None]:
        try:
            yield
        except CorruptObject as error:
            self._put(self.bucket, _UNREADABLE + entry.sha256, str(error).encode(), {})
            self._unreadable.add(entry.sha256)
            raise

    def _verify(self, entry: FileEntry, content: bytes | Path, found: str) -> None:
        if found != entry.sha256:
            key = self.blob_key(entry.sha256)
            self._quarantine(key, content, found)
            raise CorruptObject(
                f"object {key} of {self.uri} hashes to {found}, not to its name; it was moved to quarantine/ "
                "and will be computed again by the next run"
            )
        self._is_whole(entry)

    def materialise(self, entries: Iterable[FileEntry], folder: Path) -> Path:
        """Download all files into the folder, each verified; returns the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(max_workers=4) as pool:
            list(pool.map(lambda e: self.fetch(e, folder / e.path), entries))
        return folder

    def _quarantine(self, key: str, broken: bytes | Path, found: str) -> None:
        """Keep the broken bytes, and remove the object unless another run has put a whole one there meanwhile."""
        target = f"quarantine/{key.rsplit('/', 1)[-1]}-{found[:12]}"
        self._put(self.bucket, target, broken, {})
        try:
            etag = self._call(self.client.head_object, Bucket=self.bucket, Key=key)["ETag"].strip('"')
        except ObjectMissing:
            return
        # The ETag of an object put in one piece is its MD5; one put in several ("-") is known by nothing but its bytes.
        if "-" in etag or etag == _md5(broken):
            self.remove(self.bucket, key)


def _md5(content: bytes | Path) -> str:
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
