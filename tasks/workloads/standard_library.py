"""Texts that are there wherever Python is: the sources of its standard library, to be continued."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from tasks.readers.sources import package_folder
from tasks.running.errors import DataReadError
from tasks.workloads.causal_lm import CausalLM

_ASIDE = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "lib2to3"}


class StandardLibrary(CausalLM):
    """Python files of the standard library, tests left out; a text for each.

    Args:
        packages: those of these packages or modules of it only, such as ``[json, email]``; absent: all.
        decoder, tokens, rows, vocabulary, questions: as for :class:`tasks.workloads.causal_lm.CausalLM`.
    """

    def __init__(
        self,
        packages: list[str] | None = None,
        decoder: str | None = None,
        tokens: int = 128,
        rows: int = 20_000,
        vocabulary: int | None = None,
        questions: str | None = None,
    ) -> None:
        super().__init__(
            "standard library", decoder=decoder, tokens=tokens, rows=rows, vocabulary=vocabulary, questions=questions
        )
        self.packages = packages

    def read(self) -> dict[str, list[str]]:
        """The sources of all files.

        Raises:
            DataReadError: a package is not there.
        """
        root = Path(sysconfig.get_paths()["stdlib"])
        roots = [root] if self.packages is None else [package_folder(name) for name in self.packages]
        files = sorted(
            file for each in roots for file in each.rglob("*.py") if not _ASIDE & {*file.relative_to(root).parts}
        )
        texts = [file.read_bytes().decode(errors="replace") for file in files]
        if not texts:
            raise DataReadError(f"there are no sources in {root}; install Python's standard library as files")
        return {"all": list(dict.fromkeys(text for text in texts if text.strip()))}
