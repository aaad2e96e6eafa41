"""Samples of a tar file in the form of WebDataset: neighbouring files that share a name up to its first dot.

The form: https://github.com/webdataset/webdataset, "The WebDataset Format". Nothing is unpacked to the disk.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_registry.manifest import stays_inside
from tasks.readers.class_labels import label_text
from tasks.readers.folder_layout import EXTENSIONS
from tasks.running.errors import DataReadError

MOST_BYTES = 64 << 20
"""That a file of a sample may have: it is read into memory."""
_LABEL, _JSON, _KEY = "cls", "json", "label"
_IMAGES = {ending.removeprefix(".") for ending in EXTENSIONS}
_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)")
"""The key of a sample, and the ending of a file in it."""


@dataclass(frozen=True)
class ImageSample:
    """``image``: the bytes of its file; None: there is none, and the same for ``label``. ``where``: it, for people."""

    where: str
    image: bytes | None
    label: str | None


def read_tar(path: Path, key: str | None, left: Counter[str], *, where: str) -> Iterator[ImageSample]:
    """The samples of a tar file, one at a time.

    Args:
        key: of the label in ``.json``; None: it stands in ``.cls``, or where a sample has none, in the key ``label``.
        left: counts members that are passed over, by what they are.
        where: the file for people.

    Raises:
        DataReadError: it cannot be read to its end, a member's name leads out of it, or a sample has two images, two
            files of one ending, a file that is too large or a label that cannot be read.
    """
    name, files = "", dict[str, bytes]()
    try:
        for place, ending, content in _members(path, left, where):
            if place != name and files:
                yield _sample(f"{where}: the sample {name!r}", files, key)
                files = {}
            name = place
            if ending in files or (ending in _IMAGES and _IMAGES & set(files)):
                twice = "two images" if ending in _IMAGES else f"two files .{ending}"
                raise DataReadError(f"{where}: the sample {name!r} has {twice}; keep one")
            files[ending] = content
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise DataReadError(f"{where} cannot be read as a tar file: {error}; check that it was copied whole") from error
    if files:
        yield _sample(f"{where}: the sample {name!r}", files, key)


def _members(path: Path, left: Counter[str], where: str) -> Iterator[tuple[str, str, bytes]]:
    """Key, ending and content of the files that are images or hold labels."""
    with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # undocumented; it would grow with the file
            place = member.name.removeprefix("./")
            if member.isdir():
                continue
            if not member.isreg():
                left["links and devices"] += 1
                continue
            if not stays_inside(place):
                raise DataReadError(
                    f"{where}: the name {member.name[:200]!r} leads out of the archive; pack the files again, with "
                    "names that are relative to their folder"
                )
            named = _NAME.fullmatch(place)
            if named is None:
                left["hidden or without an ending"] += 1
                continue
            ending = named[2].lower()
            if ending not in {_LABEL, _JSON, *_IMAGES}:
                left[f".{ending}"] += 1
                continue
            if member.size > MOST_BYTES:
                raise DataReadError(
                    f"{where}: {place!r} has {member.size} bytes, a file of a sample may have {MOST_BYTES}; make it "
                    "smaller or take it out"
                )
            content = archive.extractfile(member)
            assert content is not None  # it is a regular file
            yield named[1], ending, content.read()
        file.seek(archive.offset)
        _require_end(file.read(tarfile.BLOCKSIZE), where)
        while block := file.read(1 << 20):
            _require_end(block, where)


def _require_end(block: bytes, where: str) -> None:
    """Zeros: the library takes a damaged header, and a file that ends early, for the end."""
    if not block or block.count(0) != len(block):
        raise DataReadError(
            f"{where} does not end where its members do: it was not copied or written whole, is damaged, or is several "
            "tar files in one; bring whole ones"
        )


def _sample(where: str, files: dict[str, bytes], key: str | None) -> ImageSample:
    image = next((content for ending, content in files.items() if ending in _IMAGES), None)
    if key is None and _LABEL in files:
        return ImageSample(where, image, label_text(_text(files[_LABEL], where), where))
    if _JSON not in files:
        return ImageSample(where, image, None)
    try:
        found: Any = json.loads(files[_JSON])
    except (ValueError, RecursionError) as error:
        raise DataReadError(f"{where}: its .json cannot be read: {error}") from error
    value = found.get(key or _KEY) if isinstance(found, dict) else None
    return ImageSample(where, image, label_text(value, where))


def _text(content: bytes, where: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise DataReadError(f"{where}: its .cls is not UTF-8 text: {error}; save it as UTF-8") from error
