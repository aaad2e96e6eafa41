"""Graphs as ONNX Runtime has optimised them for this class of CPU, kept on disk: the next start need not do it again.

Such a file holds layouts and operators of this CPU class and this version, so it never leaves the machine's cache and
is no part of a variant. ``<root>/<key>/model.onnx`` and ``record.json`` appear together, by renaming; the key is made
of everything the file depends on, and the record holds its hash, checked at each use. Whatever goes wrong here, the
variant's own file is loaded instead.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import onnxruntime
from pydantic import ValidationError

from model_registry.cpu_class import cpu_class
from model_registry.manifest import FileEntry, ManifestMismatch, canonical_json, describe_files, hash_bytes
from model_registry.variant import Record, RuntimeSpec, Variant
from serving.verified_file import read_verified

MODEL = "model.onnx"
# Optimising costs time by the node, reading by the byte. Measured: a 12-layer fp32 encoder (240 KiB a node) starts no
# faster from its optimised graph, the same in int8 (50 KiB) by a fifth, a deep int8 CNN (2 KiB) in a fifth of the time.
MIN_NODES, MAX_BYTES_PER_NODE = 32, 128 << 10
_STALE_SECONDS = 3600
log = logging.getLogger("winnow.serving")


class OptimizedGraph(Record):
    """What a kept graph was made from, by what, and its hash."""

    variant: str
    runtime: RuntimeSpec
    cpu_class: str
    onnxruntime: str
    file: FileEntry | None = None
    """Of the optimised graph; None in the part that the key is made of."""


class OptimizedGraphs:
    """The kept graphs of one folder; several processes may use it at once.

    Args:
        root: made on first use, for this user alone; ignored where others may write into it.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, variant: Variant) -> bytes | None:
        """The optimised graph of the variant, verified; None if there is none. A damaged one is thrown away."""
        wanted = _origin(variant)
        folder = self._root / _key(wanted)
        try:
            if not self._private():
                return None
            found = OptimizedGraph.model_validate_json((folder / "record.json").read_bytes())
            if found.file is None or found.model_copy(update={"file": None}) != wanted:
                raise ManifestMismatch(str(folder), extra=[], missing=[], changed=["record.json"])
            return read_verified(folder, found.file)
        except FileNotFoundError:
            if folder.exists():
                self.discard(variant)
        except (ManifestMismatch, ValidationError, OSError) as error:
            log.warning("the optimised graph of %s is damaged and made anew: %s", variant.name, error)
            self.discard(variant)
        return None

    @contextlib.contextmanager
    def saving(self, variant: Variant) -> Iterator[Path | None]:
        """Where to write the optimised graph; kept if the body leaves a file there. None: the disk does not take it."""
        partial = self._partial()
        try:
            yield partial / MODEL if partial else None
            if partial and (partial / MODEL).is_file():
                self._keep(partial, variant)
        finally:
            if partial:
                shutil.rmtree(partial, ignore_errors=True)

    def discard(self, variant: Variant) -> None:
        """Throw the variant's graph away."""
        folder = self._root / _key(_origin(variant))
        with contextlib.suppress(OSError):  # renamed first: nobody sees half of it
            broken = Path(tempfile.mkdtemp(dir=self._root, prefix=".broken-"))
            with contextlib.suppress(OSError):  # another process was faster
                folder.rename(broken / folder.name)
            shutil.rmtree(broken, ignore_errors=True)

    def _keep(self, partial: Path, variant: Variant) -> None:
        origin = _origin(variant)
        try:
            record = origin.model_copy(update={"file": describe_files(partial / MODEL, MODEL)})
            (partial / "record.json").write_bytes(record.to_json())
            partial.rename(self._root / _key(origin))
        except OSError as error:  # the disk is full, or another process was faster
            log.info("the optimised graph of %s is not kept: %s", variant.name, error.strerror or error)

    def _partial(self) -> Path | None:
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for left in [*self._root.glob(".partial-*"), *self._root.glob(".broken-*")]:
                if left.stat().st_mtime < time.time() - _STALE_SECONDS:  # of a process that was killed
                    shutil.rmtree(left, ignore_errors=True)
            return Path(tempfile.mkdtemp(dir=self._root, prefix=".partial-")) if self._private() else None
        except OSError as error:
            log.info("optimised graphs are not kept: %s", error.strerror or error)
            return None

    def _private(self) -> bool:
        """Whether only this user can have written here: a hash lying beside its file proves nothing against others."""
        status = self._root.lstat()
        private = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022
        if not private:
            log.warning("%s can be written by others: optimised graphs are neither read from it nor kept", self._root)
        return private


def worth_keeping(nodes: int, size: int) -> bool:
    """Whether a graph of so many nodes and bytes starts faster once it is optimised."""
    return nodes >= MIN_NODES and size <= nodes * MAX_BYTES_PER_NODE


def _origin(variant: Variant) -> OptimizedGraph:
    return OptimizedGraph(
        variant=variant.digest,
        runtime=variant.runtime,
        cpu_class=cpu_class(),
        onnxruntime=onnxruntime.__version__,
    )


def _key(origin: OptimizedGraph) -> str:
    return hash_bytes(canonical_json(origin.model_dump(mode="json")))
