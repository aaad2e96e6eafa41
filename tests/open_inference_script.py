"""What open-inference's own client sees of an endpoint: run by the Python of an environment that has it.

``open_inference_script.py URL MODEL``; prints one JSON object, by question what was answered.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from open_inference.openapi.client import AsyncOpenInferenceClient, InferenceRequest, OpenInferenceClient
from open_inference.openapi.core.api_error import ApiError

URL, MODEL = sys.argv[1:3]
ROWS = np.arange(2 * 64, dtype=np.float32).reshape(2, 1, 8, 8) % 17


def request(data: Any, shape: tuple[int, ...] = ROWS.shape, **more: Any) -> Any:
    tensor = {"name": "image", "shape": list(shape), "datatype": "FP32", "data": data}
    return InferenceRequest(inputs=[tensor], **more)


def plain(answer: Any) -> dict[str, Any]:
    found = json.loads(answer.json())
    outputs = {output["name"]: output["data"] for output in found["outputs"]}
    logits = np.reshape(outputs["logits"], (len(ROWS), -1)).tolist()
    labels = [f"{label:g}" for label in outputs["label"]]  # it takes texts for numbers where they could be some
    return {"logits": logits, "label": labels, "id": found.get("id"), "version": found["model_version"]}


def main() -> None:
    client = OpenInferenceClient(base_url=URL)

    async def beside() -> dict[str, Any]:
        return plain(await AsyncOpenInferenceClient(base_url=URL).model_infer(MODEL, request=request(ROWS.tolist())))

    def of_metadata(answer: Any) -> Any:
        return json.loads(answer.json())

    questions: dict[str, Callable[[], Any]] = {
        "live": client.check_server_liveness,
        "ready": client.check_server_readiness,
        "model ready": lambda: client.check_model_readiness(MODEL),
        "version ready": lambda: client.check_model_version_readiness(MODEL, "3"),
        "no such model": lambda: client.check_model_readiness("nothing"),
        "server": lambda: of_metadata(client.read_server_metadata()),
        "metadata": lambda: of_metadata(client.read_model_metadata(MODEL)),
        "nested": lambda: plain(client.model_infer(MODEL, request=request(ROWS.tolist(), id="a7"))),
        "flat": lambda: plain(client.model_infer(MODEL, request=request(ROWS.ravel().tolist()))),
        "of a version": lambda: plain(client.model_version_infer(MODEL, "3", request=request(ROWS.tolist()))),
        "asyncio": lambda: asyncio.run(beside()),
        "wrong shape": lambda: plain(client.model_infer(MODEL, request=request(ROWS.ravel().tolist(), (4, 1, 8, 4)))),
        "unknown model": lambda: plain(client.model_infer("nothing", request=request(ROWS.tolist()))),
    }
    found: dict[str, Any] = {}
    for name, ask in questions.items():
        try:
            found[name] = ask()
        except ApiError as error:
            body = error.body if isinstance(error.body, dict) else json.loads(error.body.json())
            found[name] = {"error": body["error"], "status": error.status_code}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
