"""The source hash follows code at any depth and ignores how it is written down."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.running import source_files, syntax_tree
from tasks.running.errors import WorkloadError
from tasks.running.source_files import SourceFiles
from tasks.running.source_hash import _walk, closure_hash, closure_libraries, normalised


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


def test_what_is_started_by_its_name_counts_as_what_is_imported() -> None:
    """The probe's processes make the predictions behind metric and gates; nobody imports them."""
    for entry in ("tasks.measure.measure_child", "tasks.validate.gates_child"):
        assert "serving.probe_resources" in _walk(entry, None), entry


def test_every_module_that_a_step_starts_is_in_its_closure() -> None:
    """Whoever starts a process by a module's name writes the name as one text, which the closure follows."""
    root = Path(__file__).parent.parent
    for path in [*(root / "tasks").rglob("*.py"), *(root / "serving").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "AskedProcess":
                (name,) = node.args
                assert isinstance(name, ast.Constant), f"{path} starts a module that is not named there"
                module = path.relative_to(root).with_suffix("").as_posix().replace("/", ".")
                assert name.value in _walk(module, None)


@pytest.mark.parametrize("call", ["importlib.import_module('helper_mod')", "__import__('helper_mod')"])
def test_what_is_imported_by_a_call_with_its_name_counts(tmp_path: Path, call: str) -> None:
    _write(tmp_path, "caller_mod", f"import importlib\nhelper = {call}\n")
    _write(tmp_path, "helper_mod", "x = 1\n")
    before = closure_hash("caller_mod", str(tmp_path))
    _write(tmp_path, "helper_mod", "x = 12345\n")
    assert closure_hash("caller_mod", str(tmp_path)) != before


def test_docstrings_count_where_the_code_looks_at_them() -> None:
    for code in ("class A:\n    '''{}'''\n    width = int(__doc__)\n", "def f():\n    '''{}'''\nW = f.__doc__\n"):
        assert normalised(code.format(3)) != normalised(code.format(5))


def test_a_source_may_have_any_encoding_that_python_reads(tmp_path: Path) -> None:
    (tmp_path / "marked_mod.py").write_bytes(b"\xef\xbb\xbfx = 1\n")
    (tmp_path / "latin_mod.py").write_bytes(b"# -*- coding: latin-1 -*-\nx = '\xe4'\n")
    before = [closure_hash(name, str(tmp_path)) for name in ("marked_mod", "latin_mod")]
    (tmp_path / "latin_mod.py").write_bytes(b"# -*- coding: latin-1 -*-\nx = '\xe44444'\n")
    assert closure_hash("latin_mod", str(tmp_path)) not in before


@pytest.mark.parametrize("changed", ["outer/__init__.py", "outer/inner/__init__.py"])
def test_the_packages_around_a_module_count(tmp_path: Path, changed: str) -> None:
    """Their code runs when the module is imported: ``torch.set_default_dtype`` there changes what is trained."""
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    for name in ("outer/__init__.py", "outer/inner/__init__.py", "outer/inner/mine_mod.py"):
        (tmp_path / name).write_text("x = 1\n")
    before = closure_hash("outer.inner.mine_mod", str(tmp_path))
    (tmp_path / changed).write_text("x = 12345\n")
    assert closure_hash("outer.inner.mine_mod", str(tmp_path)) != before


def test_libraries_count_by_version_and_those_not_installed_by_their_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, folder = tmp_path / "elsewhere" / "backbones_lib", tmp_path / "mine"
    for made in (library, folder):
        made.mkdir(parents=True)
    (library / "__init__.py").write_text("from backbones_lib.wide import WIDTH\n")
    (library / "wide.py").write_text("WIDTH = 64\n")
    _write(
        folder,
        "lib_mod",
        """
        import json
        import sklearn.datasets
        import no_such_library
        from backbones_lib import WIDTH
        from winnow import split_columns
        from other_mod import f
    """,
    )
    _write(folder, "other_mod", "import click\n")
    monkeypatch.syspath_prepend(str(library.parent))

    def libraries() -> dict[str, str]:
        return closure_libraries("lib_mod", str(folder))

    before = libraries()
    assert before.keys() == {"sklearn", "no_such_library", "backbones_lib", "click"}
    assert before["sklearn"] == importlib.metadata.version("scikit-learn")
    assert before["click"] == importlib.metadata.version("click")
    assert before["no_such_library"] == "not installed"
    (library / "wide.py").write_text("WIDTH = 128128\n")
    assert libraries() == {**before, "backbones_lib": libraries()["backbones_lib"]} != before


def test_a_library_of_ours_that_reads_data_counts() -> None:
    assert closure_libraries("tasks.workloads.digits")["sklearn"] == importlib.metadata.version("scikit-learn")


Reading = Callable[[Path, str], tuple[str, tuple[str, ...]]]


def _reader(reads: list[str]) -> Reading:
    def read(path: Path, name: str) -> tuple[str, tuple[str, ...]]:
        reads.append(name)
        return path.read_text(), (name,)

    return read


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stack's folder, and files that settle at once."""
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(source_files, "_GRANULARITY_NS", -1)
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def test_a_file_is_read_once_by_all_processes(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "a_mod.py"
    file.write_text("x = 1")
    reads: list[str] = []
    first = SourceFiles(_reader(reads), "1")
    assert first.look_at(str(file), "a_mod").digest == first.look_at(str(file), "a_mod").digest == "x = 1"
    first.keep()
    second = SourceFiles(_reader(reads), "1")
    assert second.look_at(str(file), "a_mod") == first.look_at(str(file), "a_mod")
    assert reads == ["a_mod"]
    file.write_text("x = 2")
    assert second.look_at(str(file), "a_mod").digest == "x = 2"
    SourceFiles(_reader(reads), "2").look_at(str(file), "a_mod")  # read in another way: nothing of it is used
    assert len(reads) == 3


@pytest.mark.parametrize("change", ["content", "replaced", "backdated"])
def test_no_change_is_missed(home: Path, tmp_path: Path, change: str) -> None:
    file = tmp_path / "a_mod.py"
    file.write_text("x = 1")
    files = SourceFiles(_reader([]), "1")
    assert files.look_at(str(file), "a_mod").digest == "x = 1"
    before = file.stat()
    if change == "replaced":  # as editors do
        other = tmp_path / "other"
        other.write_text("x = 2")
        other.replace(file)
    else:
        file.write_text("x = 2")
    if change != "content":
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert files.look_at(str(file), "a_mod").digest == "x = 2"


def test_a_file_written_just_now_is_not_remembered(tmp_path: Path) -> None:
    """It could be written again within the same tick of the file system's clock, as large as before."""
    file = tmp_path / "a_mod.py"
    reads: list[str] = []
    files = SourceFiles(_reader(reads), "1")
    file.write_text("x = 1")
    for _ in range(3):
        files.look_at(str(file), "a_mod")
    assert len(reads) == 3


def test_what_is_kept_may_be_damaged(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "a_mod.py"
    file.write_text("x = 1")
    files = SourceFiles(_reader([]), "1")
    files.look_at(str(file), "a_mod")
    files.keep()
    (kept,) = (home / "cache").iterdir()
    kept.write_text('{"files": {"a": 3')
    assert SourceFiles(_reader([]), "1").look_at(str(file), "a_mod").digest == "x = 1"


def test_no_folder_is_made_where_there_is_no_stack(tmp_path: Path) -> None:
    code = "from tasks.running.source_hash import closure_hash; closure_hash('tasks.train.train_child')"
    environment = {**os.environ, "WINNOW_HOME": str(tmp_path / "none")}
    subprocess.run([sys.executable, "-P", "-c", code], env=environment, check=True, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("source", [b"def f(:\n", b"x = 1\x00\n", b"x = '\xe4'\n"])
def test_a_source_that_is_no_python_is_named(tmp_path: Path, source: bytes) -> None:
    (tmp_path / "broken_mod.py").write_bytes(source)
    _write(tmp_path, "importing_mod", "import broken_mod\n")
    with pytest.raises(WorkloadError, match=r"broken_mod\.py is not Python that can be read"):
        closure_hash("importing_mod", str(tmp_path))


def test_trees_that_are_made_in_several_threads_are_made_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.11 counts their depth for all threads together, and libraries do not take our lock."""
    parse, disturbed = ast.parse, iter([True, True])

    def parsed(*given: Any, **named: Any) -> ast.Module:
        assert syntax_tree._LOCK.locked()
        if next(disturbed, False):
            raise SystemError("AST constructor recursion depth mismatch (before=87, after=24)")
        tree: ast.Module = parse(*given, **named)
        return tree

    monkeypatch.setattr(ast, "parse", parsed)
    assert isinstance(syntax_tree.syntax_tree("a = 1").body[0], ast.Assign)
    disturbed = iter([True] * 5)
    with pytest.raises(SystemError, match="recursion depth"):
        syntax_tree.syntax_tree("a = 1")
