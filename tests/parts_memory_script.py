"""Data in files, brought to disk by a process that may take a part of it: ``parts_memory_script.py KIND FOLDER``."""

from __future__ import annotations

import io
import json
import resource
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tasks.data.materialise import storable
from tasks.data.split_files import SplitFiles
from tasks.readers import source_parts
from tasks.readers.image_shards import read_samples
from tasks.readers.joined_tables import read_joined_tables
from tasks.running.splits import SPLITS
from tasks.workloads import gathered_images, table_parts, text_parts
from tasks.workloads.images import Images
from tasks.workloads.tabular import Tabular
from tasks.workloads.text import Text

LIMIT = 16 << 20


class Rows:
    """62 numbers and a target, 8 bytes each: 343 MB in 40 files."""

    files, rows, row_bytes, ending = 40, 17_000, 8 * 63, "parquet"

    def write(self, file: Path, rows: int, seed: int) -> None:
        values = np.random.default_rng(seed).normal(size=rows * 62)
        lists = pa.FixedSizeListArray.from_arrays(pa.array(values), 62)
        table = pa.table({"x": lists, "y": pa.array((values[::62] > 0).astype(np.int64))})
        pq.write_table(table, file, row_group_size=1000, compression="none", use_dictionary=False)

    def workload(self, source: str) -> Tabular:
        return Tabular(source, "y")

    def whole(self, source: str) -> int:
        return len([block.columns for block in source_parts.read_blocks(source)])


class Pictures:
    """Noise of 64 x 64 pixels in colour: 118 MB in 8 files."""

    files, rows, row_bytes, ending = 8, 1200, 64 * 64 * 3, "tar"

    def write(self, file: Path, rows: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        with tarfile.open(file, "w") as archive:
            for row in range(rows):
                picture = io.BytesIO()
                Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(picture, "BMP")
                for name, content in ((f"{row}.bmp", picture.getvalue()), (f"{row}.cls", str(row % 2).encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
                archive.members = []  # type: ignore[attr-defined]  # undocumented; it grows

    def workload(self, source: str) -> Images:
        return Images(source)

    def whole(self, source: str) -> int:
        return len(list(read_samples(source, image=None, target=None, left=Counter())))


class Letters:
    """Texts of 120 letters with a label, of which 24 tokens are kept: 58 MB in 8 files of JSON lines."""

    files, rows, row_bytes, ending = 8, 60_000, 121, "jsonl"

    def write(self, file: Path, rows: int, seed: int) -> None:
        words = [f"word{number}" for number in range(900)]
        chosen = np.random.default_rng(seed).integers(0, 900, (rows, 16))
        with file.open("w") as stream:
            for row in chosen:
                text = " ".join(words[number] for number in row)
                stream.write(json.dumps({"text": text, "target": "ab"[row[0] % 2]}) + "\n")

    def workload(self, source: str) -> Text:
        return Text(source, tokens=24, vocabulary=600)

    def whole(self, source: str) -> int:
        return len(read_joined_tables(source, texts=("text", "target")))


def store(workload: Tabular | Images | Text, folder: Path) -> dict[str, int]:
    """What the data step does with data in parts, but for its checks; the rows of each split."""
    files = SplitFiles(folder / "columns")
    folder.joinpath("rows").mkdir()
    for part in workload.partitions(folder / "rows") or ():
        files.add(storable({name: columns for name, columns in part.items() if len(columns["target"])}), {})
    for name in SPLITS:
        files.write_npz(name, folder / f"{name}.npz")
    return files.rows


def private_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmData"))


def main(kind: Rows | Pictures | Letters, folder: Path) -> None:
    source_parts._BLOCK_BYTES, table_parts._PART_BYTES, text_parts._PART_BYTES = 1 << 18, 1 << 20, 1 << 18
    gathered_images._BLOCK_BYTES, gathered_images._PART_BYTES = 1 << 18, 1 << 20
    for number in range(kind.files):
        kind.write(folder / f"{number:02}.{kind.ending}", kind.rows, number)
    (folder / "few").mkdir()
    kind.write(folder / "few" / f"0.{kind.ending}", min(2000, kind.rows), 0)
    store(
        kind.workload(f"{folder}/few/*.{kind.ending}"), folder / "first"
    )  # what libraries take at first use, they have
    resource.setrlimit(resource.RLIMIT_DATA, (private_bytes() + LIMIT, resource.RLIM_INFINITY))
    source = f"{folder}/*.{kind.ending}"
    try:
        whole = str(kind.whole(source))
    except MemoryError as error:
        whole = type(error).__name__
    stored = store(kind.workload(source), folder / "second")
    rows = kind.files * kind.rows
    told = {"limit": LIMIT, "data": rows * kind.row_bytes, "rows": rows, "stored": sum(stored.values())}
    print(json.dumps({**told, "whole": whole}))


if __name__ == "__main__":
    kinds: dict[str, Rows | Pictures | Letters] = {"rows": Rows(), "pictures": Pictures(), "letters": Letters()}
    main(kinds[sys.argv[1]], Path(sys.argv[2]))
