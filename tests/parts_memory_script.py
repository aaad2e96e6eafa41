"""A table in files, brought to disk by a process that may take a 20th of it: ``parts_memory_script.py FOLDER``."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.data.materialise import storable
from tasks.data.split_files import SplitFiles
from tasks.readers import source_parts
from tasks.running.splits import SPLITS
from tasks.workloads import table_parts
from tasks.workloads.tabular import Tabular

LIMIT = 16 << 20
FILES, ROWS, WIDTH = 40, 17_000, 62
"""Rows of 62 numbers and a target, 8 bytes each: 343 MB."""


def write(file: Path, rows: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=rows * WIDTH)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(values), WIDTH)
    table = pa.table({"x": lists, "y": pa.array((values[::WIDTH] > 0).astype(np.int64))})
    pq.write_table(table, file, row_group_size=1000, compression="none", use_dictionary=False)


def store(source: str, folder: Path) -> dict[str, int]:
    """What the data step does with a table in parts, but for its checks; the rows of each split."""
    files = SplitFiles(folder / "columns")
    folder.joinpath("rows").mkdir()
    for part in Tabular(source, "y").partitions(folder / "rows") or ():
        files.add(storable(part), part.source_rows)
    for name in SPLITS:
        files.write_npz(name, folder / f"{name}.npz")
    return files.rows


def private_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmData"))


def main(folder: Path) -> None:
    source_parts._BLOCK_BYTES, table_parts._PART_BYTES = 1 << 18, 1 << 20
    for number in range(FILES):
        write(folder / f"{number:02}.parquet", ROWS, number)
    (folder / "few").mkdir()
    write(folder / "few" / "0.parquet", 2000, 0)
    store(f"{folder}/few/*.parquet", folder / "first")  # whatever libraries take at first use, they have now
    resource.setrlimit(resource.RLIMIT_DATA, (private_bytes() + LIMIT, resource.RLIM_INFINITY))
    try:
        whole = str(len([block.columns for block in source_parts.read_blocks(f"{folder}/*.parquet")]))
    except MemoryError as error:
        whole = type(error).__name__
    stored = store(f"{folder}/*.parquet", folder / "second")
    rows = FILES * ROWS
    told = {"limit": LIMIT, "data": rows * 8 * (WIDTH + 1), "rows": rows, "stored": sum(stored.values())}
    print(json.dumps({**told, "whole": whole}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
