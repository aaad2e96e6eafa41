"""Splits for data that comes without: seeded, stratified, and the same sample never in two of them."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.readers.content import row_hashes
from tasks.readers.reading import Reading
from tasks.running.errors import DataReadError
from tasks.running.splits import SPLITS, TARGET, Columns

FRACTIONS: dict[str, float] = {"train": 0.55, "calibration": 0.1, "validation": 0.15, "test": 0.2}
"""The default shares: the test split is the largest after train because the last gate rests on it alone."""

_BINS = 10


class Divided(dict[str, Columns]):
    """Splits by name that know where their rows come from, so that a finding can name the row of the user's file.

    ``source_rows``: per split, the number or name of each row in what was divided. ``reading``: how the files were
    understood, for the report.
    """

    def __init__(
        self,
        splits: Mapping[str, Columns],
        source_rows: Mapping[str, NDArray[Any]],
        reading: Reading = Reading(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(splits)
        self.source_rows = dict(source_rows)
        self.reading = reading


def split_columns(
    columns: Columns,
    *,
    seed: int = 0,
    fractions: Mapping[str, float] = FRACTIONS,
    target: str = TARGET,
    source_rows: Sequence[str] | NDArray[Any] | None = None,
) -> Divided:
    """Divide rows into splits, stratified by the target, equal inputs always together.

    Args:
        columns: arrays [rows, ...]; ``target`` names the one to stratify by (numbers with a fraction by deciles). All
            others decide which rows are equal: leave out beforehand what the model does not see, such as identifiers.
        seed: another seed gives another division; the order of the rows has no influence.
        fractions: share of the rows by split name; the shares must add up to 1.
        source_rows: a name for every row, such as its file; by default its number.

    Raises:
        DataReadError: too few rows to put one into every split.
    """
    inputs = [name for name in sorted(columns) if name != target]
    hashes = row_hashes(columns, inputs)
    rows = assign(hashes, strata(columns[target]), seed=seed, fractions=fractions)
    empty = [name for name, chosen in rows.items() if not len(chosen)]
    if empty:
        raise DataReadError(
            f"{len(columns[target])} rows ({len(set(hashes.tolist()))} different ones) are too few to divide into "
            f"{dict(fractions)}: {empty} would be empty; bring more rows or a file per split"
        )
    names = np.arange(len(columns[target])) if source_rows is None else np.asarray(source_rows)
    return Divided(
        {name: {column: values[chosen] for column, values in columns.items()} for name, chosen in rows.items()},
        {name: names[chosen] for name, chosen in rows.items()},
    )


def complete(
    splits: dict[str, Columns],
    *,
    seed: int = 0,
    fractions: Mapping[str, float] = FRACTIONS,
    target: str = TARGET,
    source_rows: Mapping[str, Sequence[str] | NDArray[Any]] | None = None,
) -> Divided:
    """Take the splits that are missing out of train, by their shares; as :func:`split_columns`, which see.

    Args:
        splits: columns by split: ``train``, and any of ``calibration``, ``validation`` and ``test``.
        seed: another seed gives another division.
        fractions: share of the rows by split name, of all data.
        target: name of the column to stratify by.
        source_rows: by split, a name for every row, such as its file; by default its number.

    Returns:
        All four splits.

    Raises:
        DataReadError: there is no train split, or it is too small.
    """
    names = {split: np.asarray(rows) for split, rows in (source_rows or {}).items()}
    given = {split: np.arange(len(columns[target])) for split, columns in splits.items()} | names
    missing = [name for name in SPLITS if name not in splits]
    if not missing:
        return Divided(splits, given)
    if "train" not in splits:
        raise DataReadError(f"the data has the splits {sorted(splits)} and no train; name its file")
    shares = shares_of("train", splits, fractions)
    train = (source_rows or {}).get("train")
    taken = split_columns(splits["train"], seed=seed, fractions=shares, target=target, source_rows=train)
    return Divided(splits | taken, given | taken.source_rows)


def require_splits(names: Collection[str]) -> None:
    """DataReadError where one is not the name of a split."""
    unknown = sorted(set(names) - set(SPLITS))
    if unknown:
        raise DataReadError(f"source names the splits {unknown}; known are {', '.join(SPLITS)}")


def shares_of(split: str, given: Collection[str], fractions: Mapping[str, float] = FRACTIONS) -> dict[str, float]:
    """Into which splits the rows of one that is given go, by shares that add up to 1.

    Args:
        split: that is given, or ``all``. Of ``train`` those are taken that are missing.
        given: all splits that are given.
    """
    names = SPLITS if split == "all" else [split]
    if split == "train":
        names = ["train", *(name for name in SPLITS if name not in given)]
    total = sum(fractions[name] for name in names)
    return {name: fractions[name] / total for name in names}


def in_one_part(divided: Callable[[Path], Iterator[Divided]]) -> Divided:
    """Splits in parts as one, with the reading of the first; for those who have the memory.

    Args:
        divided: gives the parts; takes a folder for what lies there until the last of them was taken.
    """
    with tempfile.TemporaryDirectory(prefix="winnow-rows-") as folder:
        parts = list(divided(Path(folder)))
    return Divided(
        {
            name: {column: np.concatenate([part[name][column] for part in parts]) for column in columns}
            for name, columns in parts[0].items()
        },
        {name: np.concatenate([part.source_rows[name] for part in parts]) for name in parts[0].source_rows},
        parts[0].reading,
    )


def strata(target: NDArray[Any]) -> NDArray[np.str_]:
    """The group of every row within which the division is proportional: its class, or its decile."""
    if np.issubdtype(target.dtype, np.floating):
        ranks = np.argsort(np.argsort(target.reshape(len(target), -1)[:, 0], kind="stable"), kind="stable")
        return (ranks * _BINS // max(len(target), 1)).astype(np.str_)
    return target.reshape(len(target), -1)[:, 0].astype(np.str_)


def assign(
    groups: NDArray[np.str_], stratum: NDArray[np.str_], *, seed: int, fractions: Mapping[str, float]
) -> dict[str, NDArray[np.intp]]:
    """Row numbers by split, ascending. Rows of one group stay together; the group has the stratum of its smallest.

    Groups are visited stratum by stratum, within one in an order drawn from seed and group; each goes to the split
    that is furthest behind its share. So every stretch of the visit, and with it every stratum, is divided almost
    exactly by the shares, and nothing depends on the order of the rows.
    """
    if abs(sum(fractions.values()) - 1) > 1e-6 or min(fractions.values()) <= 0:
        raise ValueError(f"fractions {dict(fractions)} must be positive and add up to 1")
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups.tolist()):
        members.setdefault(group, []).append(row)
    visit = sorted(
        (min(str(stratum[row]) for row in rows), hashlib.sha256(f"{seed}:{group}".encode()).hexdigest(), group)
        for group, rows in members.items()
    )
    chosen: dict[str, list[int]] = {name: [] for name in fractions}
    seen = 0
    for _, _, group in visit:
        rows = members[group]
        seen += len(rows)
        behind = max(fractions, key=lambda name: fractions[name] * seen - len(chosen[name]))
        chosen[behind].extend(rows)
    return {name: np.sort(np.array(rows, dtype=np.intp)) for name, rows in chosen.items()}
