"""The model behind PyTriton, which is Triton with a model in Python: ``peer_pytriton.py``."""

# mypy: disable-error-code="import-not-found,misc,no-any-return,untyped-decorator"
from __future__ import annotations

import os
from typing import Any

import numpy as np
from peer_session import INPUT, MOST_ROWS, PORT, load
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

SESSION = load()
SHAPE = tuple(int(size) for size in os.environ["PEER_SHAPE"].split(","))


@batch
def infer(**inputs: Any) -> list[Any]:
    """A batch of rows."""
    return [SESSION.run(None, {INPUT: inputs[INPUT]})[0]]


if __name__ == "__main__":
    where = {f"{kind}_address": "127.0.0.1" for kind in ("http", "grpc", "metrics")}
    with Triton(config=TritonConfig(http_port=PORT, grpc_port=PORT + 1, metrics_port=PORT + 2, **where)) as triton:
        triton.bind(
            model_name="m",
            infer_func=infer,
            inputs=[Tensor(name=INPUT, dtype=np.float32, shape=SHAPE)],
            outputs=[Tensor(name="logits", dtype=np.float32, shape=(10,))],
            config=ModelConfig(max_batch_size=MOST_ROWS, batcher=DynamicBatcher(max_queue_delay_microseconds=100)),
        )
        triton.serve()
