"""The model behind LitServe, batched: ``peer_litserve.py``."""

# mypy: disable-error-code="import-not-found,misc,no-any-return,untyped-decorator"
from __future__ import annotations

from typing import Any

import litserve
import numpy as np
from peer_session import INPUT, MOST_ROWS, PORT, answer_of, load, rows_of


class Peer(litserve.LitAPI):
    """One worker."""

    def setup(self, device: str) -> None:
        self.session = load()

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # FastAPI makes of a type what it must not
        return rows_of(request)

    def batch(self, inputs: list[Any]) -> Any:
        self.sizes = [len(rows) for rows in inputs]
        return np.concatenate(inputs)

    def predict(self, rows: Any) -> Any:
        return self.session.run(None, {INPUT: rows})[0]

    def unbatch(self, output: Any) -> list[Any]:
        return np.split(output, np.cumsum(self.sizes)[:-1])

    def encode_response(self, output: Any) -> dict[str, Any]:
        return answer_of(output, output.ravel().tolist())


if __name__ == "__main__":
    server = litserve.LitServer(Peer(max_batch_size=MOST_ROWS, batch_timeout=0.001), accelerator="cpu")
    server.run(host="127.0.0.1", port=PORT, generate_client_file=False, log_level="error", num_api_servers=1)
