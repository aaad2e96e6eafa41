"""Under which circumstances a benchmark ran: what its JSON opens with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Iterable
from typing import Any

from model_registry.cpu_class import cpu_class, cpu_model


def circumstances(libraries: Iterable[str]) -> dict[str, Any]:
    """Date, hardware, and the versions of Python and the distributions."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "versions": {name: importlib.metadata.version(name) for name in libraries},
        "python": platform.python_version(),
    }


def hardware() -> dict[str, Any]:
    """CPU and its class, cores that may be used, memory."""
    return {
        "cpu": cpu_model(),
        "cpu_class": cpu_class(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
    }
