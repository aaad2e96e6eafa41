"""ONNX Runtime, which since 1.29 reports to its makers what it loads, unless it is told not to while it is imported.

Processes that Winnow starts have the switch in their environment; this is for everybody else's, such as the notebook
that loads a model. Their environment is left as it was.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

from model_registry.quiet import TELEMETRY_OFF


def _imported() -> Any:
    before = {name: os.environ.get(name) for name in TELEMETRY_OFF}
    os.environ.update(TELEMETRY_OFF)
    try:
        return importlib.import_module("onnxruntime")
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


onnxruntime = _imported()
