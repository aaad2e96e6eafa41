"""NumPy archives, never unpickled."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from tasks.readers.reading import ReadColumns, Reading, kinds_sentence
from tasks.running.errors import DataReadError


def read_npz(path: Path) -> ReadColumns:
    """Arrays of an ``.npz``, each [rows, ...], the first axis equally long in all.

    Raises:
        DataReadError: no archive, a damaged one, arrays of Python objects (they would need pickle), a number without
            rows, or arrays of unequal length.
    """
    try:
        with path.open("rb") as stream:  # numpy would leave a damaged file open
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataReadError(f"{path} holds a single array, not an archive; save it with numpy.savez")
            columns = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error) or "pickle" in str(error).lower():
            rule = "it holds Python objects, or is no npz at all; save plain numbers or text with numpy.savez"
        else:
            rule = f"{error}; check that it was copied whole"
        raise DataReadError(f"{path} cannot be read as npz: {rule}") from error
    if not columns:
        raise DataReadError(f"{path} holds no arrays; save them with numpy.savez(path, name=array, ...)")
    flat = [name for name, array in columns.items() if array.ndim == 0]
    if flat:
        raise DataReadError(f"{path}: {flat} are single values without rows; every array must be [rows, ...]")
    lengths = {name: len(array) for name, array in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataReadError(f"{path}: the arrays differ in their number of rows: {lengths}; all must be equal")
    if not next(iter(lengths.values())):
        raise DataReadError(f"{path} holds no rows, at least one is needed; check that the file is complete")
    rows = next(iter(lengths.values()))
    kinds = {name: f"{array.dtype.name} {list(array.shape[1:])}" for name, array in columns.items()}
    return ReadColumns(columns, Reading((f"{path.name}: {rows} rows. {kinds_sentence(kinds)}",)))
