"""The model behind Mosec, batched: ``peer_mosec.py``."""

# mypy: disable-error-code="import-not-found,misc"
from __future__ import annotations

import sys
from typing import Any

import numpy as np
import orjson
from mosec import Server, Worker
from peer_session import INPUT, MOST_ROWS, PORT, answer_of, load, rows_of


class Peer(Worker):
    """Reads, computes and writes in one process; Mosec's own in Rust speaks HTTP and makes the batches."""

    def __init__(self) -> None:
        super().__init__()
        self.session = load()

    def deserialize(self, data: bytes) -> Any:
        return rows_of(orjson.loads(data))

    def forward(self, data: list[Any]) -> list[Any]:
        (found,) = self.session.run(None, {INPUT: np.concatenate(data)})
        return np.split(found, np.cumsum([len(rows) for rows in data])[:-1])

    def serialize(self, data: Any) -> bytes:
        return orjson.dumps(answer_of(data, np.ravel(data)), option=orjson.OPT_SERIALIZE_NUMPY)


if __name__ == "__main__":
    sys.argv += ["--port", str(PORT), "--address", "127.0.0.1"]
    server = Server()
    server.append_worker(Peer, num=1, max_batch_size=MOST_ROWS, max_wait_time=1)
    server.run()
