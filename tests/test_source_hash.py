"""The source hash follows code at any depth and ignores how it is written down."""

from __future__ import annotations

import textwrap
from pathlib import Path

from tasks.running.source_hash import closure_hash, normalised


def _write(folder: Path, name: str, source: str) -> None:
    (folder / f"{name}.py").write_text(textwrap.dedent(source))


def test_formatting_comments_and_docstrings_do_not_count() -> None:
    plain = "def f(x):\n    return x + 1\n"
    dressed = '"""Module."""\n\n# why\ndef f(\n    x,\n):\n    """Docs."""\n    return (x + 1)  # because\n'
    assert normalised(plain) == normalised(dressed)
    assert normalised(plain) != normalised("def f(x):\n    return x + 2\n")


def test_a_function_of_only_a_docstring_stays_a_function() -> None:
    assert normalised('def f():\n    """Nothing."""\n') == normalised("def f():\n    pass\n")


def test_a_change_in_an_imported_module_counts_at_any_depth(tmp_path: Path) -> None:
    _write(tmp_path, "top_mod", "import middle_mod\n")
    _write(tmp_path, "middle_mod", "from bottom_mod import f\n")
    _write(tmp_path, "bottom_mod", "def f():\n    return 1\n")
    _write(tmp_path, "stranger_mod", "x = 1\n")
    before = closure_hash("top_mod", str(tmp_path))
    _write(tmp_path, "stranger_mod", "x = 2222\n")
    assert closure_hash("top_mod", str(tmp_path)) == before
    _write(tmp_path, "bottom_mod", "def f():\n    # reworded\n    return 1\n")
    assert closure_hash("top_mod", str(tmp_path)) == before
    _write(tmp_path, "bottom_mod", "def f():\n    return 2222\n")
    assert closure_hash("top_mod", str(tmp_path)) != before


def test_relative_imports_are_followed(tmp_path: Path) -> None:
    package = tmp_path / "pack"
    package.mkdir()
    _write(package, "__init__", "")
    _write(package, "entry_mod", "from .inner_mod import g\n")
    _write(package, "inner_mod", "def g():\n    return 1\n")
    before = closure_hash("pack.entry_mod", str(tmp_path))
    _write(package, "inner_mod", "def g():\n    return 12345\n")
    assert closure_hash("pack.entry_mod", str(tmp_path)) != before


def test_two_folders_with_the_same_code_agree(tmp_path: Path) -> None:
    hashes = set()
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        _write(folder, "mine_mod", "x = 1\n")
        hashes.add(closure_hash("mine_mod", str(folder)))
    assert len(hashes) == 1


def test_a_cycle_ends(tmp_path: Path) -> None:
    _write(tmp_path, "a_mod", "import b_mod\n")
    _write(tmp_path, "b_mod", "import a_mod\n")
    assert closure_hash("a_mod", str(tmp_path)) != closure_hash("nothing_here", str(tmp_path))


def test_an_installed_package_counts_as_a_whole() -> None:
    assert closure_hash("click.globals") != closure_hash("no_such_package_at_all")
