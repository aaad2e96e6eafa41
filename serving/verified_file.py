"""A file read once and hashed as it is read: the bytes that were checked are the bytes that are used."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from model_registry.manifest import FileEntry, ManifestMismatch, hash_bytes


def read_verified(folder: Path, entry: FileEntry) -> bytes:
    """The content of a regular file (no link) of the folder.

    Raises:
        ManifestMismatch: it is missing, or not what the entry says.
    """
    path = folder / entry.path
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise ManifestMismatch(str(folder), extra=[], missing=[entry.path], changed=[]) from error
    except OSError as error:  # a symbolic link
        raise ManifestMismatch(str(folder), extra=[], missing=[], changed=[entry.path]) from error
    with os.fdopen(descriptor, "rb") as stream:
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        data = stream.read() if regular else b""
    if not regular or len(data) != entry.size or hash_bytes(data) != entry.sha256:
        raise ManifestMismatch(str(folder), extra=[], missing=[], changed=[entry.path])
    return data
