"""MNIST's IDX files (also gzipped). Format: the end of http://yann.lecun.com/exdb/mnist/."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from tasks.readers.reading import ReadColumns, Reading
from tasks.running.errors import DataReadError
from tasks.running.splits import Columns

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_PARTS = {"train": ("train",), "test": ("t10k", "test")}


def read_idx(path: Path) -> np.ndarray:
    """The array of one IDX file, in native byte order; gzip is recognised by content, not by name.

    Raises:
        DataReadError: wrong magic number, unknown type, or not as many bytes as the header says.
    """
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DataReadError(f"{path} cannot be unpacked: {error}; check that it was copied whole") from error
    return parse_idx(data, str(path))


def parse_idx(data: bytes, where: str) -> np.ndarray:
    """The array in the bytes of an (unpacked) IDX file; ``where`` names it in the error. Raises like read_idx."""
    if len(data) < 4 or data[:2] != b"\0\0":
        found_bytes = data[:4].hex() or "nothing"
        raise DataReadError(f"{where} is no IDX file: it must start with two zero bytes, it starts with {found_bytes}")
    code, rank = data[2], data[3]
    if code not in _TYPES:
        raise DataReadError(f"{where}: IDX type 0x{code:02x} is unknown, known are {[hex(c) for c in _TYPES]}")
    if rank == 0 or len(data) < 4 + 4 * rank:
        raise DataReadError(f"{where}: the header promises {rank} dimensions and the file ends before them")
    shape = struct.unpack(f">{rank}I", data[4 : 4 + 4 * rank])
    dtype = np.dtype(_TYPES[code])
    wanted, found = math.prod(shape) * dtype.itemsize, len(data) - 4 - 4 * rank
    if wanted != found:
        raise DataReadError(
            f"{where}: the header promises shape {shape} = {wanted} bytes, {found} follow; "
            "check that it was copied whole"
        )
    array = np.frombuffer(data, dtype=dtype, offset=4 + 4 * rank).reshape(shape)
    return array.astype(dtype.newbyteorder("="))


def read_idx_folder(folder: Path) -> dict[str, ReadColumns]:
    """The sets of a folder laid out like MNIST: ``train-images-idx3-ubyte`` and so on, with ``t10k`` as ``test``.

    Returns:
        ``image`` [rows, channels, height, width] and ``target`` [rows] int64 by set name (``train``, ``test``).

    Raises:
        DataReadError: no pair of images and labels, or unequal counts in a pair.
    """
    sets: dict[str, ReadColumns] = {}
    for name, prefixes in _PARTS.items():
        images, labels = (_find(folder, prefixes, kind) for kind in ("images", "labels"))
        if images and labels:
            columns = _pair(images, labels)
            said = f"{folder.name}: {name} is {images.name} and {labels.name}, {list(columns['image'].shape)}."
            sets[name] = ReadColumns(columns, Reading((said,)))
    if not sets:
        raise DataReadError(
            f"{folder} holds no pair of IDX files; it needs train-images-idx3-ubyte and train-labels-idx1-ubyte "
            "(and t10k-... for the test set), each with or without .gz"
        )
    return sets


def _find(folder: Path, prefixes: tuple[str, ...], kind: str) -> Path | None:
    starts = tuple(f"{prefix}-{kind}" for prefix in prefixes)
    return next((p for p in sorted(folder.iterdir()) if p.name.startswith(starts) and "idx" in p.name), None)


def _pair(images: Path, labels: Path) -> Columns:
    image, target = read_idx(images), read_idx(labels)
    if image.ndim not in (3, 4) or target.ndim != 1 or len(image) != len(target) or not len(image):
        raise DataReadError(
            f"{images.name} holds shape {image.shape} and {labels.name} {target.shape}; they must be "
            "[rows, height, width] (or with channels, [rows, height, width, channels]) and [rows], as many in both"
        )
    image = image[:, None] if image.ndim == 3 else np.ascontiguousarray(image.transpose(0, 3, 1, 2))
    return {"image": image, "target": target.astype(np.int64)}
