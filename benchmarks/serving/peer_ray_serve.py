"""The model behind Ray Serve, batched, on a cluster of its own: ``peer_ray_serve.py``."""

# mypy: disable-error-code="attr-defined,import-not-found,misc,no-any-return,untyped-decorator"
from __future__ import annotations

import signal
from typing import Any

import numpy as np
import ray
from peer_session import INPUT, MOST_ROWS, PORT, answer_of, load, rows_of
from ray import serve


@serve.deployment(num_replicas=1, max_ongoing_requests=1024)
class Peer:
    """One replica."""

    def __init__(self) -> None:
        self.session = load()

    @serve.batch(max_batch_size=MOST_ROWS, batch_wait_timeout_s=0.001)
    async def run(self, inputs: list[Any]) -> list[Any]:
        (found,) = self.session.run(None, {INPUT: np.concatenate(inputs)})
        return np.split(found, np.cumsum([len(rows) for rows in inputs])[:-1])

    async def __call__(self, request: Any) -> dict[str, Any]:
        found = await self.run(rows_of(await request.json()))
        return answer_of(found, found.ravel().tolist())


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(Peer.bind(), route_prefix="/infer")
    signal.pause()
