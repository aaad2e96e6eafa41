"""A workload whose data lie in four files of arrays; what is missing is its model."""

from __future__ import annotations

from tasks.readers.npz_reader import read_npz
from tasks.readers.sources import local
from tasks.running.splits import SPLITS, Columns


class ArrayWorkload:
    """Base of a workload that reads ``train.npz``, ``calibration.npz``, ``validation.npz`` and ``test.npz``.

    Each holds arrays [rows, ...] by column name, ``target`` among them. Add ``model(role)``, and what else you need.

    Args:
        data: the folder of the files, beside the spec, absolute, or s3://bucket/prefix.
    """

    def __init__(self, data: str = "data") -> None:
        self.data = data

    def splits(self) -> dict[str, Columns]:
        """All splits.

        Raises:
            DataReadError: the folder or one of the files is not there, or cannot be read.
        """
        with local(self.data) as folder:
            return {name: read_npz(folder / f"{name}.npz") for name in SPLITS}
