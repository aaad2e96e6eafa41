"""What the peers' servers share: the session, as ours runs it, and reading and writing the protocol's JSON by hand."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnxruntime

PORT = int(os.environ.get("PEER_PORT", "0"))
INPUT = os.environ.get("PEER_INPUT", "")
MOST_ROWS = 64


def load() -> Any:
    """The model of PEER_MODEL: one thread, which does not spin."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(os.environ["PEER_MODEL"], options, providers=["CPUExecutionProvider"])


def rows_of(request: Any) -> Any:
    """The only input of a request, [N, ...]."""
    (tensor,) = request["inputs"]
    return np.array(tensor["data"], np.float32).reshape(tensor["shape"])


def answer_of(logits: Any, data: Any) -> dict[str, Any]:
    """The answer with these numbers, as the peer's own encoder takes them."""
    return {"outputs": [{"name": "logits", "shape": list(logits.shape), "datatype": "FP32", "data": data}]}
