"""Variants on local disk, by digest: fetched once from the store, verified at each use, never joined from names.

``<root>/<digest>/variant.json`` and ``<root>/<digest>/files/...``; a folder appears whole, by renaming.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from model_registry.manifest import ManifestMismatch, verify_folder
from model_registry.store import Store
from model_registry.variant import NewerRecord, Variant

_STALE_SECONDS = 3600
_DIGEST = re.compile(r"[0-9a-f]{64}")


class CacheUnusable(Exception):
    """The cache folder cannot be written (disk full, rights). Make room, or set WINNOW_HOME elsewhere."""


class ManifestAltered(Exception):
    """The store's manifest of a variant does not hash to its name. Register the variant again."""


def download_variant(store: Store, digest: str, folder: Path) -> None:
    """Put the variant's manifest and files into a folder that is there.

    Raises:
        ObjectMissing, CorruptObject, StoreUnavailable, StoreDenied: from the store.
        ManifestAltered, NewerRecord: its manifest cannot be used.
        OSError: the disk does not take it.
    """
    try:
        variant = store.load_variant(digest)
    except ValidationError as error:
        raise ManifestAltered(f"the manifest of {digest} in {store.uri} cannot be used: {error}") from error
    if variant.digest != digest:
        raise ManifestAltered(f"the manifest of {digest} in {store.uri} is that of {variant.digest}")
    store.materialise(variant.files, folder / "files")
    (folder / "variant.json").write_bytes(variant.to_json())


class VariantCache:
    """Content-addressed; safe to use from several threads and by several processes.

    Args:
        root: the cache's folder; made on first use.
        download: puts the variant of a digest into a folder, as :func:`download_variant` does.
    """

    def __init__(self, root: Path, download: Callable[[str, Path], None]) -> None:
        self._root = root
        self._fetch_into = download
        self._locks: dict[str, threading.Lock] = defaultdict(threading.Lock)

    def fetch(self, digest: str) -> tuple[Path, Variant]:
        """The folder with the variant's verified files, and the variant.

        A copy that is not exactly what the manifest says is thrown away and fetched again. Blocks: call it in a thread.

        Raises:
            ObjectMissing, CorruptObject, StoreUnavailable, StoreDenied: from the store.
            ManifestAltered, NewerRecord: the store's manifest cannot be used.
            CacheUnusable: the disk does not take it.
        """
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"{digest!r} is no digest (64 hexadecimal digits)")
        try:
            with self._locks[digest]:
                return self._verified(digest) or self._download(digest)
        except OSError as error:
            raise CacheUnusable(
                f"the endpoint's cache cannot be used ({error.strerror or error}); make room or set WINNOW_HOME"
            ) from error

    def _verified(self, digest: str) -> tuple[Path, Variant] | None:
        """The copy on disk, if it is there and right; a wrong one is removed."""
        folder = self._root / digest
        try:
            return self._read(digest)
        except FileNotFoundError:
            self._discard(folder)
            return None
        except (ManifestMismatch, NewerRecord, ValidationError):
            self._discard(folder)
            return None

    def _read(self, digest: str) -> tuple[Path, Variant]:
        folder = self._root / digest
        variant = Variant.from_json((folder / "variant.json").read_bytes())
        if variant.digest != digest:
            raise ManifestMismatch(str(folder), extra=[], missing=[], changed=["variant.json"])
        verify_folder(folder / "files", variant.files)
        return folder / "files", variant

    def _download(self, digest: str) -> tuple[Path, Variant]:
        self._root.mkdir(parents=True, exist_ok=True)
        self._sweep()
        partial = Path(tempfile.mkdtemp(dir=self._root, prefix=".partial-"))
        try:
            self._fetch_into(digest, partial)
            if not (self._root / digest).exists():  # another process may have been faster
                partial.rename(self._root / digest)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return self._read(digest)

    def _sweep(self) -> None:
        """Remove what a killed endpoint left half done."""
        for left in [*self._root.glob(".partial-*"), *self._root.glob(".broken-*")]:
            if left.stat().st_mtime < time.time() - _STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)

    def _discard(self, folder: Path) -> None:
        if folder.exists():
            # Renamed first: an engine that is reading the old files is not shown a half-removed folder.
            broken = Path(tempfile.mkdtemp(dir=self._root, prefix=".broken-"))
            folder.rename(broken / folder.name)
            shutil.rmtree(broken, ignore_errors=True)
