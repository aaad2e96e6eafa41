"""The hash of an algorithm's source: its normalised AST and that of every first-party module it imports.

Reformatting, comments and docstrings leave it unchanged; nothing is imported to compute it.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterable
from functools import lru_cache
from os.path import isfile
from pathlib import Path

from model_registry.manifest import canonical_json, hash_bytes
from tasks.running.source_files import SourceFiles

_ROOT = Path(__file__).parents[2]
FIRST_PARTY = ("flows", "tasks", "model_registry", "serving", "infra", "winnow")
FACE = "winnow"
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
    found = {name: path for name, (_, path) in _walk(module, folder).items()}
    for name in list(found):  # the packages around them
        parents = [name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1)]
        paths = {parent: _find(parent, {"": folder}) for parent in parents}
        found |= {parent: Path(path) for parent, path in paths.items() if path is not None}
    return {name: path for name, path in found.items() if name.split(".")[0] not in FIRST_PARTY}


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
        pending.extend(i for i in source.imports if not (i + ".").startswith(_PLUMBING) and i not in looked_for)
    _files().keep()
    return found


def normalised(source: str) -> str:
    """The source as an AST dump without docstrings, comments and formatting."""
    return _dump(ast.parse(source))


def _dump(tree: ast.Module) -> str:
    """The tree without docstrings, as text; changes it."""
    for node in ast.walk(tree):
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
    source = path.read_text(encoding="utf-8")
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    imports: list[str] = []
    tree = ast.parse(source, filename=str(path))
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
    imports += _behind(_attributes_of_the_face(tree))
    return hash_bytes(_dump(tree).encode()), tuple(dict.fromkeys(imports))


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
    tree = ast.parse((_ROOT / FACE / "__init__.py").read_text(encoding="utf-8"))
    return {
        alias.asname: (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
        if alias.asname
    }
