"""A task of texts that is there wherever Python is: which package does a docstring come from?"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from tasks.running.errors import DataReadError
from tasks.running.splits import SPLITS, TARGET, Columns
from tasks.workloads.text import Text

PACKAGES = (
    *("numpy", "scipy", "sklearn", "torch", "pandas", "matplotlib"),
    *("mlflow", "prefect", "sqlalchemy", "networkx", "sympy", "onnx"),
)
_SHARES = (("train", 0.55), ("calibration", 0.1), ("validation", 0.15), ("test", 0.2))
Described = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_SHORTEST = 40
"""Letters of a docstring that says something."""


class Docstrings(Text):
    """First paragraphs of docstrings, without the package's name; a class for each package.

    The files of a package, not their docstrings, are divided into splits: neighbours in a file are alike.

    Args:
        packages: that are installed here.
        rows: of a package, at most.
        encoder, tokens, vocabulary: as for :class:`tasks.workloads.text.Text`.
    """

    def __init__(
        self,
        packages: Sequence[str] = PACKAGES,
        rows: int = 1500,
        encoder: str | None = None,
        tokens: int = 64,
        vocabulary: int = 8192,
    ) -> None:
        super().__init__("docstrings", encoder=encoder, tokens=tokens, vocabulary=vocabulary)
        self.source = dict.fromkeys(SPLITS, "docstrings")
        self.packages, self.rows = tuple(packages), rows

    def read(self) -> dict[str, Columns]:
        """Texts and packages by split.

        Raises:
            DataReadError: a package is not installed, or has no docstrings.
        """
        texts, labels = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
        seen = set[str]()
        for package in self.packages:
            found = _docstrings(package, self.rows, seen)
            if len(found) < len(_SHARES):
                raise DataReadError(f"package {package!r} has {len(found)} docstrings; name other packages")
            for split, text in found:
                texts[split].append(text)
                labels[split].append(package)
        return {
            split: {"text": np.array(texts[split], object), TARGET: np.array(labels[split], np.str_)}
            for split in SPLITS
        }


def _docstrings(package: str, rows: int, seen: set[str]) -> list[tuple[str, str]]:
    """Split and text of docstrings that were not ``seen``, which they then are, from files in the order of a hash."""
    own, found = re.compile(rf"\b{re.escape(package)}\b", re.IGNORECASE), list[tuple[str, str]]()
    for split, tree in package_files(package):
        for _, text in described(tree):
            masked = own.sub("it", text)
            if masked not in seen and len(found) < rows:
                seen.add(masked)
                found.append((split, masked))
        if len(found) >= rows:
            break
    return found


def package_files(package: str) -> Iterator[tuple[str, ast.Module]]:
    """The split and the syntax tree of each of a package's files but its tests, in the order of a hash of its name.

    Raises:
        DataReadError: the package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataReadError(f"package {package!r} is not installed, or has no files of its own; name other packages")
    root = Path(next(iter(spec.submodule_search_locations)))
    files = {_place(file.relative_to(root)): file for file in root.rglob("*.py") if "tests" not in file.parts}
    for place, file in sorted(files.items()):
        with suppress(SyntaxError, ValueError, RecursionError):  # templates, and syntax of another Python
            yield _split(place), ast.parse(file.read_bytes())


def described(tree: ast.Module) -> Iterator[tuple[Described, str]]:
    """What a file describes, and the first paragraphs of that, where they have 40 letters or more."""
    for node in ast.walk(tree):
        if isinstance(node, Described):
            text = ast.get_docstring(node)
            first = " ".join(text.split("\n\n")[0].split()) if text else ""
            if len(first) >= _SHORTEST:
                yield node, first


def _place(name: Path) -> float:
    """From 0 to 1, by the file's name alone."""
    return int.from_bytes(hashlib.sha256(name.as_posix().encode()).digest()[:6]) / 2**48


def _split(place: float) -> str:
    """Whose turn it is: files are read in the order of their places, so the split goes by its further digits."""
    rest, total = place * 4096 % 1, 0.0
    for name, share in _SHARES:
        total += share
        if rest < total:
            return name
    return _SHARES[-1][0]
