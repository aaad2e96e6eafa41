"""The source of a class or function that a user holds: copied from its files, or taken out of a notebook's cells.

What is written down must run in another process, with nothing of this one: every name it uses is imported, copied
along, or refused by name.
"""

from __future__ import annotations

import ast
import builtins
import linecache
import shutil
import site
import sys
import sysconfig
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.running.errors import WorkloadError
from tasks.running.source_hash import FIRST_PARTY, closure_files
from tasks.running.syntax_tree import syntax_tree

CELLS = "cells"
"""Module that holds what was taken out of a notebook or a script."""
SESSION = "__main__"
"""Module of a notebook, a script, an interactive session: its file, if any, does more than define things."""
_PLAIN = (bool, int, float, str, bytes, type(None))


@dataclass
class LiveSource:
    """Collects definitions; :meth:`write` puts them where another process can import them."""

    definitions: dict[str, str] = field(default_factory=dict)
    """Name to source, of what no file holds, in an order in which they can run."""
    imports: dict[str, str] = field(default_factory=dict)
    """Name to import line, of what they use."""
    files: dict[str, Path] = field(default_factory=dict)
    """Dotted name to file, of the user's own modules."""
    _open: list[str] = field(default_factory=list)

    def add(self, thing: Any, what: str) -> str:
        """Make the class or function importable elsewhere; returns its dotted path, ``module.Name``.

        Args:
            thing: a class or a function.
            what: what it is for, for messages: ``loss``, ``the model's class``.

        Raises:
            WorkloadError: it has no name or no source, or uses something that cannot be written down.
        """
        name = getattr(thing, "__qualname__", "")
        named = isinstance(thing, type | types.FunctionType | types.BuiltinFunctionType) or _importable(thing)
        if not named or not name:
            raise WorkloadError(f"{what} is a {type(thing).__name__}; give a class or a function")
        if "<lambda>" in name:
            raise WorkloadError(f"{what} is a lambda, which has no source of its own; write it with def")
        if "<locals>" in name:
            raise WorkloadError(
                f"{what} {name.replace('.<locals>', '')!r} is defined inside a function and may depend on its "
                "variables; define it at the top level of a module or a cell"
            )
        module = thing.__module__
        if module == SESSION:
            self._define(name.split(".")[0], vars(sys.modules[module]), what)
            return f"{CELLS}.{name}"
        self._carry(module, what)
        return f"{module}.{name}"

    def write(self, folder: Path) -> None:
        """Write the definitions as ``cells.py`` and copy the files of the user's modules."""
        if self.definitions:
            parts = [
                '"""Taken from a notebook or a script by winnow.compress."""',
                "\n".join(["from __future__ import annotations", *sorted(set(self.imports.values()))]),
                *self.definitions.values(),
            ]
            (folder / f"{CELLS}.py").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
        for name, path in self.files.items():
            target = folder.joinpath(*name.split("."))
            target = target / "__init__.py" if path.name == "__init__.py" else target.with_suffix(".py")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)

    def _carry(self, module: str, what: str) -> None:
        """The user's own module with all that it imports of theirs; an installed one is imported by name."""
        top = module.split(".")[0]
        if top in FIRST_PARTY and not module.startswith("tasks.workloads"):
            raise WorkloadError(f"{what} is of the module {module!r}, which is Winnow's own; rename yours")
        path = Path(str(sys.modules[module].__file__))
        if top in FIRST_PARTY or _installed(path):
            return
        if top in (CELLS, "workload"):
            raise WorkloadError(f"{what} is of the module {top!r}, a name that winnow.compress needs; rename yours")
        root = path.parent.parent if path.name == "__init__.py" else path.parent
        for _ in range(module.count(".")):
            root = root.parent
        self.files |= closure_files(module, str(root))

    def _define(self, name: str, names: dict[str, Any], what: str) -> None:
        """Take the definition of a top-level name and of all that it uses."""
        if name in self.definitions or name in self._open:
            return
        value = names.get(name)
        tree = syntax_tree(_source_of(value, name, what))
        self._open.append(name)
        for used in sorted(_names_in(tree) - {name}):
            if used in names:
                self._need(used, names[used], names, f"{what} uses {used!r}")
            elif not hasattr(builtins, used):
                raise WorkloadError(f"{what} {name!r} uses the name {used!r}, which is not defined; define it first")
        self._open.remove(name)
        self.definitions[name] = ast.unparse(tree)

    def _need(self, name: str, value: Any, names: dict[str, Any], what: str) -> None:
        """Whatever a definition uses: a module, a class or function, or a plain value."""
        if isinstance(value, types.ModuleType):
            said = value.__name__
            self.imports[name] = f"import {said}" if said == name else f"import {said} as {name}"
            if getattr(value, "__file__", None):
                self._carry(said, what)
        elif isinstance(value, type | types.FunctionType | types.BuiltinFunctionType):
            if value.__module__ == SESSION:
                self._define(name, names, what)
                return
            found = _importable(value)
            if found is None:
                raise WorkloadError(f"{what}, which cannot be imported by another process; define it with def or class")
            self.imports[name] = f"from {found[0]} import {found[1]}" + ("" if found[1] == name else f" as {name}")
            if getattr(sys.modules[found[0]], "__file__", None):
                self._carry(found[0], what)
        elif _is_plain(value):
            self.definitions.setdefault(name, f"{name} = {value!r}")
        else:
            raise WorkloadError(
                f"{what}, a {type(value).__name__} of this session, which cannot be written down; pass it as an "
                "argument, or make it inside the class or function"
            )


def _installed(path: Path) -> bool:
    places = [*site.getsitepackages(), site.getusersitepackages(), *map(sysconfig.get_path, ("stdlib", "platstdlib"))]
    return any(path.is_relative_to(place) for place in places)


def _importable(value: Any) -> tuple[str, str] | None:
    """Module and name under which the class or function can be imported."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
    for place in (module, *(("torch", "math") if module is None else ())):
        if place and getattr(sys.modules.get(place), name, None) is value:
            return place, name
    return None


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list | frozenset | set):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(_is_plain(key) and _is_plain(item) for key, item in value.items())
    return isinstance(value, _PLAIN)


def _source_of(value: Any, name: str, what: str) -> str:
    """The text of the definition. Python itself does not find classes of notebooks: their methods know their cell."""
    codes = [value.__code__] if isinstance(value, types.FunctionType) else []
    if isinstance(value, type):
        members = [getattr(m, "__func__", getattr(m, "fget", m)) for m in vars(value).values()]
        codes = [m.__code__ for m in members if isinstance(m, types.FunctionType) and m.__module__ == value.__module__]
    for code in codes:
        lines = linecache.getlines(code.co_filename)
        if not lines:
            continue
        try:
            tree = syntax_tree("".join(lines))
        except SyntaxError:  # a cell with a line for the notebook itself, such as %timeit
            tree = syntax_tree("".join("\n" if line.lstrip().startswith(("%", "!")) else line for line in lines))
        kinds = ast.ClassDef if isinstance(value, type) else (ast.FunctionDef, ast.AsyncFunctionDef)
        found = [node for node in tree.body if isinstance(node, kinds) and node.name == name]
        if found:
            return ast.unparse(found[-1])
    raise WorkloadError(
        f"{what} {name!r}: its source cannot be found; put it into a file beside the notebook and import it"
    )


def _names_in(tree: ast.Module) -> set[str]:
    """Names that the definition reads and does not itself define."""
    read, made = set[str](), set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else made).add(node.id)
        elif isinstance(node, ast.arg):
            made.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            made.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            made |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ExceptHandler) and node.name:
            made.add(node.name)
    return read - made - {"__class__"}
