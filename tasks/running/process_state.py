"""What a stage may change for the next one in the same process, and how it is put back."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from tasks.running.source_hash import FIRST_PARTY


@dataclass(frozen=True)
class ProcessState:
    """Folder, environment, search path and torch's settings at one moment."""

    folder: str
    environment: dict[str, str]
    path: tuple[str, ...]
    torch: dict[str, Any]
    """Empty where torch is not imported yet."""

    @classmethod
    def now(cls) -> ProcessState:
        return cls(str(Path.cwd()), dict(os.environ), tuple(sys.path), _torch_settings())

    def restore(self, users: str | None) -> bool:
        """Put everything back, and forget the user's modules, which set it again when they are imported again.

        Args:
            users: the folder of the workload; what is imported from it is forgotten.

        Returns:
            Whether that suffices: operators that the user registers with torch cannot be registered twice.
        """
        os.chdir(self.folder)
        if dict(os.environ) != self.environment:
            os.environ.clear()
            os.environ.update(self.environment)
        sys.path[:] = self.path
        torch = sys.modules.get("torch")
        if torch is not None:
            for name, value in (self.torch or _UNTOUCHED).items():
                if _torch_settings()[name] != value:
                    _setters(torch)[name](value)
        theirs = _modules_in(users) if users else {}
        if any(_registers(module) for module in theirs.values()):
            return False
        for name in theirs:
            del sys.modules[name]
        return True


def seed_all(seed: int) -> None:
    """Seed every generator that a workload may draw from without saying so."""
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


_UNTOUCHED = {
    "dtype": "torch.float32",
    "grad": True,
    "deterministic": 0,
    "matmul": "highest",
    "device": "cpu",
}
"""Torch's settings when it is imported."""


def _torch_settings() -> dict[str, Any]:
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "get_default_device"):  # or is being imported
        return {}
    return {
        "dtype": str(torch.get_default_dtype()),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.get_deterministic_debug_mode(),
        "matmul": torch.get_float32_matmul_precision(),
        "device": str(torch.get_default_device()),
    }


def _setters(torch: ModuleType) -> dict[str, Callable[[Any], None]]:
    return {
        "dtype": lambda value: torch.set_default_dtype(getattr(torch, value.removeprefix("torch."))),
        "grad": torch.set_grad_enabled,
        "deterministic": torch.set_deterministic_debug_mode,
        "matmul": torch.set_float32_matmul_precision,
        "device": lambda value: torch.set_default_device(None if value == "cpu" else value),
    }


def _modules_in(folder: str) -> dict[str, ModuleType]:
    """Modules found in the folder as an entry of the search path: no library below it is among them."""
    found = {}
    for name, module in sys.modules.items():
        file = getattr(module, "__file__", None)
        if file and name.split(".")[0] not in FIRST_PARTY:
            base = Path(folder, *name.split("."))
            if Path(file) in (base.with_suffix(".py"), base / "__init__.py"):
                found[name] = module
    return found


def _registers(module: ModuleType) -> bool:
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    kinds = (torch.library.Library, torch.library.CustomOpDef) if hasattr(torch, "library") else ()
    return any(isinstance(value, kinds) for value in vars(module).values())
