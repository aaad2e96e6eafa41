"""Which modules of a model a piece of code calls."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn


@contextlib.contextmanager
def modules_called(model: nn.Module) -> Iterator[set[nn.Module]]:
    """Those inside the model that are called as functions while it lasts."""
    found = set[nn.Module]()

    def note(module: nn.Module, _arguments: Any) -> None:
        found.add(module)

    hooks = [module.register_forward_pre_hook(note) for module in model.modules() if module is not model]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
