"""The hash of an algorithm's source: its normalised AST and that of every first-party module it imports.

Reformatting, comments and docstrings leave it unchanged; nothing is imported to compute it.
"""

from __future__ import annotations

import ast
import importlib.util
from functools import lru_cache
from pathlib import Path

from model_registry.manifest import canonical_json, hash_bytes

_ROOT = Path(__file__).parents[2]
_OURS = ("flows", "tasks", "model_registry", "serving", "infra")
# What carries data and messages but computes nothing: changing it must not retrain every model.
_PLUMBING = (
    "tasks.running.child",
    "tasks.running.errors",
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
    roots = _roots(module.split(".")[0], folder)
    found: dict[str, str] = {}
    pending = [module]
    while pending:
        name = pending.pop()
        path = _find(name, roots)
        if path is None or name in found:
            continue
        digest, imports = _read(path, name, path.stat().st_mtime_ns)
        found[name] = digest
        pending.extend(i for i in imports if not (i + ".").startswith(_PLUMBING) and i not in found)
    return hash_bytes(canonical_json(sorted(found.items())))


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


def _roots(package: str, folder: str | None) -> dict[str, Path]:
    """Folders to look in, by top-level name; '' stands for any name that is not ours."""
    roots = dict.fromkeys(_OURS, _ROOT)
    if folder:
        roots[""] = Path(folder)
    if package not in roots and not (folder and _find(package, roots)):
        spec = importlib.util.find_spec(package)  # a top-level name: nothing is executed
        if spec is not None and spec.origin is not None:
            origin = Path(spec.origin)
            roots[package] = origin.parent.parent if spec.submodule_search_locations else origin.parent
    return roots


def _find(name: str, roots: dict[str, Path]) -> Path | None:
    root = roots.get(name.split(".")[0], roots.get(""))
    if root is None:
        return None
    base = root.joinpath(*name.split("."))
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)


@lru_cache(maxsize=512)
def _read(path: Path, name: str, _modified: int) -> tuple[str, tuple[str, ...]]:
    """Hash of one module and the names it may import; cached by path and modification time."""
    source = path.read_text(encoding="utf-8")
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    imports: list[str] = []
    tree = ast.parse(source, filename=str(path))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, base] if base else parent)
            # `from package import name` may name a module or something in one.
            imports += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return hash_bytes(_dump(tree).encode()), tuple(dict.fromkeys(imports))
