"""Python source as a tree, from several threads."""

from __future__ import annotations

import ast
import threading

_LOCK = threading.Lock()
_TRIES = 5


def syntax_tree(source: str | bytes, filename: str = "<unknown>") -> ast.Module:
    """``ast.parse``, one at a time.

    Python 3.11 counts the depth of a tree for all threads together: two that make trees at once end with ``SystemError:
    AST constructor recursion depth mismatch``. Libraries make trees as well, without our lock; then it is tried again.

    Raises:
        SyntaxError, ValueError: it is no Python.
    """
    for attempt in range(_TRIES):
        try:
            with _LOCK:
                return ast.parse(source, filename=filename)
        except SystemError:
            if attempt == _TRIES - 1:
                raise
    raise AssertionError("unreachable")
