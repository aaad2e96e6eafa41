"""The hash of an algorithm's source: its normalised AST and that of every first-party module it imports.

Reformatting, comments and docstrings leave it unchanged; nothing is imported to compute it.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Iterable
from functools import lru_cache
from os.path import isfile
from pathlib import Path

from model_registry.manifest import canonical_json, hash_bytes
from tasks.running.errors import WorkloadError
from tasks.running.source_files import SourceFiles
from tasks.running.syntax_tree import syntax_tree

_ROOT = Path(__file__).parents[2]
FIRST_PARTY = ("flows", "tasks", "model_registry", "serving", "infra", "winnow")
FACE = "winnow"
_VERSION = re.compile(r"^__version__\s*=\s*[\"']([^\"']+)", re.MULTILINE)
_STARTED = re.compile(rf"(?:{'|'.join(FIRST_PARTY)})(?:\.[a-z_0-9]+)+")
# What carries data and messages but computes nothing: changing it must not retrain every model.
_PLUMBING = (
    "tasks.running.child",
    "tasks.running.errors",
    "tasks.running.source_",
    "tasks.running.stage",
    "tasks.running.splits",
    "model_registry.",
)


def closure_hash(module: str, folder: str | None = None) -> str:
    """sha256 over the normalised ASTs of the module and of the first-party modules it imports, at any depth.

    Args:
        module: dotted name: ours, below ``folder``, or of an installed package (then all of that package counts).
        folder: the user's folder, searched after ours.
    """
    return hash_bytes(canonical_json(sorted((name, digest) for name, (digest, _) in _walk(module, folder).items())))


def closure_files(module: str, folder: str) -> dict[str, Path]:
    """The user's own files below ``folder`` that importing the module takes, by dotted name."""
    found = _walk(module, folder).items()
    return {name: path for name, (_, path) in found if name.split(".")[0] not in FIRST_PARTY}


def closure_libraries(module: str, folder: str | None = None) -> dict[str, str]:
    """What the user's code imports from elsewhere: the version of each installed library, by its name in imports.

    One that lies outside of site-packages (an editable installation, a folder of PYTHONPATH) changes without a new
    version: the hash of its sources. Of a workload of ours, what its own module imports.
    """
    walked = _walk(module, folder)
    theirs = [name for name in walked if name == module or name.split(".")[0] not in FIRST_PARTY]
    imported = {i for name in theirs for i in _files().look_at(str(walked[name][1]), name).imports}
    tops = {name.split(".")[0] for name in imported} - {name.split(".")[0] for name in walked}
    outside = tops - set(sys.stdlib_module_names) - set(FIRST_PARTY) - {""}
    return {top: _library(top, tuple(sorted(imported))) for top in sorted(outside)}


def public_place(name: str) -> tuple[str, str] | None:
    """Module and name of what ``import winnow`` offers under this name; None if it offers no such name."""
    return _public().get(name)


def public_names() -> list[str]:
    """All that ``import winnow`` offers, by name."""
    return sorted(_public())


def _walk(module: str, folder: str | None) -> dict[str, tuple[str, Path]]:
    """Hash and file of the module and of all it imports, by dotted name."""
    roots = _roots(module.split(".")[0], folder)
    found: dict[str, tuple[str, Path]] = {}
    looked_for: set[str] = set()
    pending = [module]
    while pending:
        name = pending.pop()
        if name in looked_for:  # most names that a module imports from another are no modules
            continue
        looked_for.add(name)
        path = _find(name, roots)
        if path is None:
            continue
        source = _files().look_at(path, name)
        found[name] = source.digest, Path(path)
        names = (*source.imports, *_packages_around(name))
        pending.extend(i for i in names if not (i + ".").startswith(_PLUMBING) and i not in looked_for)
    _files().keep()
    return found


def _packages_around(name: str) -> list[str]:
    """Those whose ``__init__`` runs when the module is imported; in a child process a step's own does not."""
    parts = name.split(".")
    around = [".".join(parts[:depth]) for depth in range(1, len(parts))]
    return [package for package in around if not package.startswith("tasks.") or package == "tasks.workloads"]


def _library(top: str, imported: tuple[str, ...]) -> str:
    """Version of an installed library, or hash of the modules of one that is not installed as such.

    Looked up each time: in a notebook, what is edited or installed between two runs must count in the second.
    """
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return "not installed"
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or ())
    if any("site-packages" in place or "dist-packages" in place for place in places):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(top)
        said = _VERSION.search(Path(places[0]).read_text(errors="replace")) if spec.origin else None
        if said:  # where the distribution has another name, as that of sklearn: looking through all takes half a second
            return said[1]
        names = _distributions(top)
        if names:
            return ", ".join(importlib.metadata.version(name) for name in names)
    modules = [name for name in imported if name.split(".")[0] == top]
    return hash_bytes(canonical_json([closure_hash(name) for name in [top, *modules]]))


@lru_cache(maxsize=256)
def _distributions(top: str) -> tuple[str, ...]:
    return tuple(sorted(set(importlib.metadata.packages_distributions().get(top, ()))))


def normalised(source: str) -> str:
    """The source as an AST dump without docstrings, comments and formatting."""
    return _dump(syntax_tree(source))


def _dump(tree: ast.Module) -> str:
    """The tree without docstrings, as text; changes it. Where the code looks at ``__doc__``, they are values."""
    looked_at = any("__doc__" in (getattr(n, "attr", ""), getattr(n, "id", "")) for n in ast.walk(tree))
    for node in () if looked_at else ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node, clean=False
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)


def _roots(package: str, folder: str | None) -> dict[str, str]:
    """Folders to look in, by top-level name; '' stands for any name that is not ours."""
    roots = dict.fromkeys(FIRST_PARTY, str(_ROOT))
    if folder:
        roots[""] = folder
    if package not in roots and not (folder and _find(package, roots)):
        spec = importlib.util.find_spec(package)  # a top-level name: nothing is executed
        if spec is not None and spec.origin is not None:
            origin = Path(spec.origin)
            roots[package] = str(origin.parent.parent if spec.submodule_search_locations else origin.parent)
    return roots


def _find(name: str, roots: dict[str, str]) -> str | None:
    top, _, _ = name.partition(".")
    root = roots.get(top, roots.get(""))
    if root is None:
        return None
    base = f"{root}/{name.replace('.', '/')}"
    # A Path for each would take three times as long, and a run asks ten thousand times.
    return next((path for path in (f"{base}.py", f"{base}/__init__.py") if isfile(path)), None)  # noqa: PTH113


@lru_cache(maxsize=1)
def _files() -> SourceFiles:
    """What was read; how a file is read is said here and by the public package, whose names lead to modules."""
    ways = Path(__file__).read_bytes() + (_ROOT / FACE / "__init__.py").read_bytes()
    return SourceFiles(_read, hash_bytes(ways)[:8])


def _read(path: Path, name: str) -> tuple[str, tuple[str, ...]]:
    """Hash of one module and the names it may import."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    imports: list[str] = []
    try:
        tree = syntax_tree(
            path.read_bytes(), filename=str(path)
        )  # bytes: with a mark or a line that says their encoding
    except (SyntaxError, ValueError) as error:
        raise WorkloadError(f"{path} is not Python that can be read: {error}") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [alias.name for alias in node.names if alias.name != FACE]
        elif isinstance(node, ast.ImportFrom) and node.module == FACE:
            imports += _behind([alias.name for alias in node.names])
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, base] if base else parent)
            # `from package import name` may name a module or something in one.
            imports += [base, *(f"{base}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Call) and (named := _imported_by_call(node)):
            imports.append(named)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _STARTED.fullmatch(node.value):
            imports.append(node.value)  # what is started by its name (python -m) computes as what is imported does
    imports += _behind(_attributes_of_the_face(tree))
    return hash_bytes(_dump(tree).encode()), tuple(dict.fromkeys(imports))


def _imported_by_call(call: ast.Call) -> str:
    """The module that ``import_module("...")`` or ``__import__("...")`` names; '' for other calls."""
    function = getattr(call.func, "attr", getattr(call.func, "id", ""))
    named = call.args[0] if call.args and function in ("import_module", "__import__") else None
    text = named.value if isinstance(named, ast.Constant) else ""
    return text if isinstance(text, str) else ""


def _behind(names: Iterable[str]) -> list[str]:
    """Modules of the algorithms behind names of the public package, whose own module mentions everything there is."""
    public = _public()
    wanted = public if "*" in (names := list(names)) else names
    return [public[name][0] for name in wanted if name in public and public[name][0].startswith("tasks.")]


def _attributes_of_the_face(tree: ast.Module) -> list[str]:
    """What the module takes from ``import winnow`` by attribute."""
    called = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == FACE
    }
    return [
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in called
    ]


@lru_cache(maxsize=1)
def _public() -> dict[str, tuple[str, str]]:
    """Name to defining module, and its name there, of everything that the public package exports."""
    tree = syntax_tree((_ROOT / FACE / "__init__.py").read_text(encoding="utf-8"))
    return {
        alias.asname: (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
        if alias.asname
    }
