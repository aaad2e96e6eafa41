"""What NVIDIA's own gRPC client sees of an endpoint: run by the Python of an environment with ``tritonclient[grpc]``.

``triton_grpc_script.py HOST:PORT MODEL [CERTIFICATE [KEY]]``; prints one JSON object, by question what was answered.
With the certificate of an authority it speaks TLS; with a key too, every call carries it.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc as triton
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import service_pb2, service_pb2_grpc

URL, MODEL = sys.argv[1:3]
CERTIFICATE = sys.argv[3] if len(sys.argv) > 3 else None
KEY = {"authorization": f"Bearer {sys.argv[4]}"} if len(sys.argv) > 4 else {}
ROWS = np.arange(2 * 64, dtype=np.float32).reshape(2, 1, 8, 8) % 17


def image(rows: Any = ROWS) -> list[Any]:
    tensor = triton.InferInput("image", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows)
    return [tensor]


def plain(answer: Any) -> dict[str, Any]:
    found = answer.get_response()
    return {
        "logits": answer.as_numpy("logits").tolist(),
        "label": [label.decode() for label in answer.as_numpy("label").tolist()],
        "id": found.id,
        "version": found.model_version,
    }


def main() -> None:
    client = triton.InferenceServerClient(URL, ssl=CERTIFICATE is not None, root_certificates=CERTIFICATE)

    def infer(**how: Any) -> dict[str, Any]:
        outputs = [triton.InferRequestedOutput(name) for name in ("logits", "label")]
        return plain(client.infer(MODEL, image(), outputs=outputs, headers=KEY, **how))

    def ask(call: Callable[..., Any], *arguments: Any) -> Any:
        return call(*arguments, headers=KEY, as_json=True)

    def in_the_background() -> dict[str, Any]:
        found: list[Any] = []
        there = threading.Event()

        def done(result: Any, error: Any) -> None:
            found.append(error or result)
            there.set()

        client.async_infer(MODEL, image(), done, headers=KEY)
        assert there.wait(30)
        if isinstance(found[0], Exception):
            raise found[0]
        return plain(found[0])

    def raw(message: Any, timeout: float | None = None, compression: Any = None) -> Any:
        """A request that tritonclient has no words for."""
        with grpc.insecure_channel(URL) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            return stub.ModelInfer(message, timeout=timeout, compression=compression)

    def message(**more: Any) -> Any:
        made = service_pb2.ModelInferRequest(model_name=MODEL, **more)
        made.inputs.add(name="image", datatype="FP32", shape=ROWS.shape)
        return made

    def typed() -> dict[str, Any]:
        asked = message()
        asked.inputs[0].contents.fp32_contents.extend(ROWS.ravel().tolist())
        return plain(triton.InferResult(raw(asked)))

    def both() -> Any:
        asked = message(raw_input_contents=[ROWS.tobytes()])
        asked.inputs[0].contents.fp32_contents.extend(ROWS.ravel().tolist())
        return MessageToDict(raw(asked))

    def bytes_of(*sent: bytes) -> Any:
        with grpc.insecure_channel(URL) as channel:
            return len(channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")(iter(sent)))

    questions: dict[str, Callable[[], Any]] = {
        "live": lambda: client.is_server_live(headers=KEY),
        "ready": lambda: client.is_server_ready(headers=KEY),
        "model ready": lambda: client.is_model_ready(MODEL, headers=KEY),
        "no such model": lambda: client.is_model_ready("nothing", headers=KEY),
        "server": lambda: ask(client.get_server_metadata),
        "metadata": lambda: ask(client.get_model_metadata, MODEL),
        "index": lambda: ask(client.get_model_repository_index),
        "as the client does by itself": lambda: plain(client.infer(MODEL, image(), headers=KEY)),
        "everything": lambda: infer(request_id="a7", model_version="3", timeout=5_000_000, client_timeout=30),
        "in the background": in_the_background,
        "statistics": lambda: ask(client.get_inference_statistics, MODEL),
        "unknown model": lambda: plain(client.infer("nothing", image(), headers=KEY)),
        "another path": lambda: plain(client.infer("digits/versions/3", image(), headers=KEY)),
        "wrong shape": lambda: plain(client.infer(MODEL, image(ROWS[:, :, :7]), headers=KEY)),
        "NaN": lambda: plain(client.infer(MODEL, image(ROWS * np.nan), headers=KEY)),
        "a priority": lambda: infer(priority=1),
        "no time": lambda: infer(timeout=1),
        "no configuration": lambda: client.get_model_config(MODEL, headers=KEY),
        "a foreign key": lambda: client.get_server_metadata(headers={"authorization": "Bearer nobody"}, as_json=True),
    }
    if CERTIFICATE is None:
        questions |= {
            "typed contents": typed,
            "both contents": both,
            "malformed": lambda: bytes_of(b"\xff" * 40),
            "no message": bytes_of,
            "two tensors for one": lambda: MessageToDict(raw(message(raw_input_contents=[ROWS.tobytes()] * 2))),
            "too large": lambda: MessageToDict(raw(message(raw_input_contents=[bytes(17 << 20)]))),
            "packed": lambda: MessageToDict(
                raw(message(raw_input_contents=[bytes(256 << 20)]), compression=grpc.Compression.Gzip)
            ),
        }
    found: dict[str, Any] = {}
    for name, question in questions.items():
        try:
            found[name] = question()
        except triton.InferenceServerException as error:
            found[name] = {"error": error.message(), "status": error.status()}
        except grpc.RpcError as error:
            found[name] = {"error": error.details(), "status": str(error.code())}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
