"""What KServe's own clients see of an endpoint: run by the Python of an environment that has ``kserve``.

``kserve_script.py URL HOST:PORT MODEL``, of HTTP and of gRPC; prints one JSON object, by question what was answered.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

URL, GRPC, MODEL = sys.argv[1:4]
ROWS = np.arange(2 * 64, dtype=np.float32).reshape(2, 1, 8, 8) % 17


def request(*, binary: bool, rows: Any = ROWS, model: str = MODEL) -> Any:
    tensor = InferInput("image", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows, binary_data=binary)
    return InferRequest(model_name=model, infer_inputs=[tensor], request_id="a7")


def plain(answer: Any) -> dict[str, Any]:
    found = {output.name: output.as_numpy().tolist() for output in answer.outputs}
    labels = [label.decode() if isinstance(label, bytes) else label for label in found["label"]]
    return {"logits": found["logits"], "label": labels, "id": answer.id, "version": answer.model_version}


async def main() -> None:
    rest, by_grpc = InferenceRESTClient(RESTConfig(protocol="v2")), InferenceGRPCClient(GRPC)
    logging.disable()  # it logs every error with its stack, and raises it too

    async def infer(**how: Any) -> dict[str, Any]:
        model = how.get("model", MODEL)
        return plain(await rest.infer(URL, request(**how), model_name=model))

    async def infer_by_grpc(**how: Any) -> dict[str, Any]:
        return plain(await by_grpc.infer(request(**how)))

    async def a_dictionary() -> dict[str, Any]:
        return plain(await rest.infer(URL, request(binary=False).to_rest()[0], model_name=MODEL))

    questions: dict[str, Callable[[], Awaitable[Any]]] = {
        "live": lambda: rest.is_server_live(URL),
        "ready": lambda: rest.is_server_ready(URL),
        "model ready": lambda: rest.is_model_ready(URL, MODEL),
        "no such model": lambda: rest.is_model_ready(URL, "nothing"),
        "json": lambda: infer(binary=False),
        "binary": lambda: infer(binary=True),
        "a dictionary": a_dictionary,
        "wrong shape": lambda: infer(binary=True, rows=ROWS[:, :, 1:]),
        "unknown model": lambda: infer(binary=True, model="nothing"),
        "live by grpc": by_grpc.is_server_live,
        "ready by grpc": by_grpc.is_server_ready,
        "model ready by grpc": lambda: by_grpc.is_model_ready(MODEL),
        "typed contents by grpc": lambda: infer_by_grpc(binary=False),
        "raw contents by grpc": lambda: infer_by_grpc(binary=True),
        "wrong shape by grpc": lambda: infer_by_grpc(binary=True, rows=ROWS[:, :, 1:]),
        "unknown model by grpc": lambda: infer_by_grpc(binary=True, model="nothing"),
    }
    found: dict[str, Any] = {}
    for name, ask in questions.items():
        try:
            found[name] = await ask()
        except httpx.HTTPStatusError as error:
            found[name] = {"error": str(error), "status": error.response.status_code}
        except grpc.RpcError as error:
            found[name] = {"error": error.details(), "status": str(error.code())}
    await rest.close()
    await by_grpc.close()
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main())
