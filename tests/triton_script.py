"""What NVIDIA's own client sees of an endpoint: run by the Python of an environment that has ``tritonclient[http]``.

``triton_script.py HOST:PORT MODEL``; prints one JSON object, by question what was answered.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio

URL, MODEL = sys.argv[1:3]
ROWS = np.arange(2 * 64, dtype=np.float32).reshape(2, 1, 8, 8) % 17


def image(*, binary: bool, rows: Any = ROWS) -> list[Any]:
    tensor = triton.InferInput("image", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows, binary_data=binary)
    return [tensor]


def outputs(*, binary: bool) -> list[Any]:
    return [triton.InferRequestedOutput(name, binary_data=binary) for name in ("logits", "label")]


def plain(answer: Any) -> dict[str, Any]:
    labels = [label.decode() if isinstance(label, bytes) else label for label in answer.as_numpy("label").tolist()]
    found = answer.get_response()
    return {
        "logits": answer.as_numpy("logits").tolist(),
        "label": labels,
        "id": found.get("id"),
        "version": found["model_version"],
    }


def main() -> None:
    client = triton.InferenceServerClient(URL)

    def infer(given: bool, wanted: bool, **how: Any) -> dict[str, Any]:
        return plain(client.infer(MODEL, image(binary=given), outputs=outputs(binary=wanted), **how))

    async def beside() -> dict[str, Any]:
        async with triton_aio.InferenceServerClient(URL) as other:
            assert await other.is_server_ready()
            return plain(await other.infer(MODEL, image(binary=True), outputs=outputs(binary=True)))

    questions: dict[str, Callable[[], Any]] = {
        "live": client.is_server_live,
        "ready": client.is_server_ready,
        "model ready": lambda: client.is_model_ready(MODEL),
        "no such model": lambda: client.is_model_ready("nothing"),
        "server": client.get_server_metadata,
        "metadata": lambda: client.get_model_metadata(MODEL),
        "index": client.get_model_repository_index,
        "json": lambda: infer(False, False),
        "binary": lambda: infer(True, True),
        "binary in, json out": lambda: infer(True, False),
        "json in, binary out": lambda: infer(False, True),
        "as the client does by itself": lambda: plain(client.infer(MODEL, image(binary=True))),
        "everything": lambda: infer(
            True,
            True,
            request_id="a7",
            model_version="3",
            timeout=5_000_000,
            query_params={"a": "b"},
            headers={"x": "y"},
        ),
        "gzip": lambda: infer(True, True, request_compression_algorithm="gzip", response_compression_algorithm="gzip"),
        "deflate": lambda: infer(
            False, False, request_compression_algorithm="deflate", response_compression_algorithm="deflate"
        ),
        "in the background": lambda: plain(
            client.async_infer(MODEL, image(binary=True), outputs=outputs(binary=True)).get_result()
        ),
        "asyncio": lambda: asyncio.run(beside()),
        "a priority": lambda: infer(True, True, priority=1),
        "a sequence": lambda: infer(True, True, sequence_id=5, sequence_start=True),
        "NaN": lambda: plain(client.infer(MODEL, image(binary=True, rows=ROWS * np.nan))),
        "statistics": lambda: client.get_inference_statistics(MODEL),
    }
    found: dict[str, Any] = {}
    for name, ask in questions.items():
        try:
            found[name] = ask()
        except triton.InferenceServerException as error:
            found[name] = {"error": error.message(), "status": error.status()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
