"""What each peer is installed with, and how it is run: in an environment of its own."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.installed_peer import installed

REQUIREMENTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "nncf": (("nncf==3.4.*", "onnx", "onnxruntime"),),
    # torch first and alone, of the build that the index gives; Olive 0.13 imports requests and does not require it.
    "olive": (("torch==2.13.0",), ("olive-ai==0.13.*", "onnx", "onnxruntime", "requests")),
}
"""By peer, what is installed in turn; onnx and onnxruntime are the newest that the peer accepts."""


def environment(peer: str, folder: Path) -> Path:
    """See :func:`benchmarks.installed_peer.installed`."""
    return installed(folder / peer, REQUIREMENTS[peer])


def quiet(home: Path) -> dict[str, str]:
    """Environment variables: one thread, a home folder of its own, and no telemetry."""
    home.mkdir(parents=True, exist_ok=True)
    outside = {"HOME": str(home), "XDG_CACHE_HOME": str(home), "CI": "true", "OLIVE_DISABLE_TELEMETRY": "1"}
    return {**os.environ, **outside, "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
