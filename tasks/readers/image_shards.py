"""Images in many files, a sample at a time: tar files in WebDataset's form, or Parquet with a column of images."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.readers.class_labels import label_text
from tasks.readers.source_parts import parquet_tables, part_names
from tasks.readers.sources import is_pattern, local
from tasks.readers.tar_samples import MOST_BYTES, ImageSample, read_tar
from tasks.running.errors import DataReadError

if TYPE_CHECKING:
    import pyarrow as pa

_TAR, _PARQUET = ".tar", ".parquet"
_IMAGE, _LABEL = "image", "label"


def in_shards(source: str) -> bool:
    """Whether a source of images is a pattern, or a single file of the same kind."""
    return is_pattern(source) or source.lower().endswith((_TAR, _PARQUET))


def read_samples(source: str, *, image: str | None, target: str | None, left: Counter[str]) -> Iterator[ImageSample]:
    """The samples of all files, in the order of their names. A file in S3 lies on the disk while it is read.

    Args:
        source: a pattern, or one file.
        image: column of the images in Parquet: bytes, or {bytes, path}. None: ``image``.
        target: column of the labels, or their key in the ``.json`` of a tar file. None: ``label``, and in a tar file
            ``.cls`` before it.
        left: counts what is passed over in tar files, by what it is.

    Raises:
        DataReadError: a file cannot be read, or holds no sample.
    """
    for name in part_names(source):
        if not name.lower().endswith((_TAR, _PARQUET)):
            raise DataReadError(
                f"{name}: images in many files are read from {_TAR} (unpacked: images are small already) and "
                f"{_PARQUET}; let the pattern name only those"
            )
        with local(name) as path:
            if name.lower().endswith(_TAR):
                samples = read_tar(path, target, left, where=name)
            else:
                samples = _read_parquet(path, image or _IMAGE, target or _LABEL, where=name)
            none = True
            for sample in samples:
                none = False
                yield sample
            if none:
                raise DataReadError(f"{name} holds no sample; check that the file is complete")


def _read_parquet(path: Path, image: str, target: str, *, where: str) -> Iterator[ImageSample]:
    row, names = 0, None
    for table in parquet_tables(path, (image, target)):
        if not row:
            names = _class_names(table.schema, target)
        for found, label in zip(table[image], table[target], strict=True):
            said = f"{where}: row {row}"
            value = label.as_py()
            if names is not None and isinstance(value, int):
                value = names[value] if 0 <= value < len(names) else None  # -1 is Hugging Face's for none
            yield ImageSample(said, _content(found.as_py(), said, image), label_text(value, said))
            row += 1


def _content(value: Any, where: str, column: str) -> bytes | None:
    if isinstance(value, dict) and "bytes" in value:
        if value["bytes"] is None and value.get("path"):
            raise DataReadError(
                f"{where} names the image {value['path']!r} in {column!r} and does not hold it; save the data set with "
                "its images embedded"
            )
        value = value["bytes"]
    if value is not None and not isinstance(value, bytes):
        raise DataReadError(
            f"{where} has {type(value).__name__} in {column!r}; a column of images holds the bytes of their files, or "
            "{bytes, path}"
        )
    if value is not None and len(value) > MOST_BYTES:
        raise DataReadError(f"{where} has an image of {len(value)} bytes, {MOST_BYTES} are allowed; make it smaller")
    return value or None


def _class_names(schema: pa.Schema, target: str) -> list[str] | None:
    """The names that Hugging Face's datasets writes beside a column of class numbers."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features[target]["names"]]
    except (KeyError, TypeError, ValueError):
        return None  # other files, and columns that are no ClassLabel
