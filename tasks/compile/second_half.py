"""The second half of a model, behind a socket: ``python second.py second.onnx [PORT] [HOST]``.

Needs numpy and onnxruntime, and nothing of Winnow: it goes along with the halves. It says its port when it listens. A
message is eight bytes of length and an array as numpy writes it (no pickle); the answers come back as one message each.
Only the machines of the first half should reach it: it checks nobody's key.
"""

from __future__ import annotations

import io
import socket
import sys
import threading
from typing import Any

import numpy as np
import onnxruntime

_LONGEST = 1 << 30
"""Bytes of a message."""


def session(file: str) -> onnxruntime.InferenceSession:
    """One thread, no spinning: as the halves were proven."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def send_array(line: socket.socket, array: np.ndarray[Any, Any]) -> None:
    """One message."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
    line.sendall(len(buffer.getbuffer()).to_bytes(8, "big") + buffer.getvalue())


def receive_array(line: socket.socket) -> np.ndarray[Any, Any] | None:
    """The next message; None at the end."""
    head = _exactly(line, 8)
    if head is None:
        return None
    length = int.from_bytes(head, "big")
    if length > _LONGEST:
        raise ValueError(f"a message of {length} bytes; {_LONGEST} are the most")
    body = _exactly(line, length)
    if body is None:
        return None
    found: np.ndarray[Any, Any] = np.lib.format.read_array(io.BytesIO(body), allow_pickle=False)
    return found


def _exactly(line: socket.socket, length: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < length:
        part = line.recv(min(1 << 20, length - len(parts)))
        if not part:
            return None
        parts += part
    return bytes(parts)


def serve_second(file: str, port: int = 0, host: str = "127.0.0.1") -> None:
    """Answer whoever connects until the process is ended."""
    model = session(file)
    (given,) = model.get_inputs()

    def answer(line: socket.socket) -> None:
        with line:
            while (array := receive_array(line)) is not None:
                for output in model.run(None, {given.name: array}):
                    send_array(line, output)

    with socket.create_server((host, port)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            line, _ = listener.accept()
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=answer, args=(line,), daemon=True).start()


if __name__ == "__main__":
    serve_second(sys.argv[1], *(kind(value) for kind, value in zip((int, str), sys.argv[2:], strict=False)))
