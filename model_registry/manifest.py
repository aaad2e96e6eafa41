"""Hashes and manifests: a model is a list of hashed files, and a mismatch is shown as a diff."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

_CHUNK = 1 << 20


class ManifestMismatch(Exception):
    """The files on disk are not the files of the manifest; names each extra, missing and changed one."""

    def __init__(self, where: str, *, extra: list[str], missing: list[str], changed: list[str]) -> None:
        self.extra, self.missing, self.changed = extra, missing, changed
        super().__init__(
            f"{where} does not match its manifest: extra {extra}, missing {missing}, changed {changed}; "
            "delete the copy and fetch it again"
        )


class FileEntry(BaseModel):
    """One file: its relative POSIX path, the sha256 of its content (also its key in the store), its size."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)

    @field_validator("path")
    @classmethod
    def _relative(cls, path: str) -> str:
        if not stays_inside(path):
            raise ValueError(f"file path {path!r} must be relative, normalised and without '..'")
        return path


def stays_inside(path: str) -> bool:
    """Whether a name from outside, joined to a folder, is a place below it: relative, normalised, without ``..``."""
    pure = PurePosixPath(path)
    odd = pure.is_absolute() or ".." in pure.parts or "\\" in path or "\0" in path
    return not odd and bool(pure.parts) and str(pure) == path


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys, no spaces, no NaN: equal values give equal bytes. TypeError for anything not JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def hash_bytes(data: bytes | memoryview) -> str:
    """sha256 of the bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def hash_file(path: Path) -> str:
    """sha256 of the file's content, in hex, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def describe_files(path: Path, name: str) -> FileEntry:
    """The entry of a local file under the given manifest name."""
    return FileEntry(path=name, sha256=hash_file(path), size=path.stat().st_size)


def describe_folder(folder: Path) -> tuple[FileEntry, ...]:
    """Entries of every regular file below the folder, sorted by path."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    return tuple(describe_files(p, p.relative_to(folder).as_posix()) for p in files)


def verify_folder(folder: Path, entries: Iterable[FileEntry]) -> None:
    """Check that the folder holds exactly these files with exactly this content.

    Raises:
        ManifestMismatch: naming each extra, missing and changed file.
    """
    wanted = {entry.path: entry for entry in entries}
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if not p.is_dir()}
    extra = sorted(found.keys() - wanted.keys())
    missing = sorted(wanted.keys() - found.keys())
    changed = sorted(
        name
        for name in wanted.keys() & found.keys()
        if found[name].is_symlink()
        or found[name].stat().st_size != wanted[name].size
        or hash_file(found[name]) != wanted[name].sha256
    )
    if extra or missing or changed:
        raise ManifestMismatch(str(folder), extra=extra, missing=missing, changed=changed)
