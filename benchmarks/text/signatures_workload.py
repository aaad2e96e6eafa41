"""A task of pairs in which order matters: does this description belong to this function?"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

import numpy as np

from tasks.running.splits import SPLITS, TARGET, Columns
from tasks.workloads.docstrings import PACKAGES, described, package_files
from tasks.workloads.text import Text

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Signatures(Text):
    """Names and parameters of functions, each once with its own description and once with another's of the same file.

    Every signature and every description stands once under each label, so whoever looks at the two apart, or at their
    words in one bag, learns nothing: it is the pair that tells.

    Args:
        packages: that are installed here.
        functions: of a package, at most.
        encoder, tokens: as for :class:`winnow.Text`.
    """

    def __init__(
        self,
        packages: Sequence[str] = PACKAGES,
        functions: int = 600,
        encoder: str | None = None,
        tokens: int = 64,
    ) -> None:
        super().__init__("signatures", "signature", "description", encoder=encoder, tokens=tokens)
        self.source = dict.fromkeys(SPLITS, "signatures")
        self.packages, self.functions = tuple(packages), functions

    def read(self) -> dict[str, Columns]:
        """Both texts and the label by split; files, not functions, are divided."""
        rows: dict[str, list[tuple[str, str, str]]] = {split: [] for split in SPLITS}
        seen = set[str]()
        for package in self.packages:
            found = 0
            for split, tree in package_files(package):
                known = [pair for pair in _functions(tree) if seen.isdisjoint(pair)][: self.functions - found]
                if len(known) < 2:
                    continue
                seen.update(*known)
                found += len(known)
                half = len(known) // 2
                others = known[half:] + known[:half]
                for (signature, own), (_, other) in zip(known, others, strict=True):
                    rows[split] += [(signature, own, "own"), (signature, other, "other")]
        names = ("signature", "description", TARGET)
        return {
            split: {
                name: np.array([row[at] for row in found], np.str_ if name == TARGET else object)
                for at, name in enumerate(names)
            }
            for split, found in rows.items()
        }


def _functions(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Signatures and descriptions of a file's functions, those with a signature or a description of their own."""
    signatures, descriptions = set[str](), set[str]()
    for node, description in described(tree):
        if isinstance(node, Function):
            known = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            signature = f"{node.name}({', '.join(name for name in known if name not in ('self', 'cls'))})"
            if signature not in signatures and description not in descriptions:
                signatures.add(signature)
                descriptions.add(description)
                yield signature, description
