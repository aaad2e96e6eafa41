"""The engine's own process: ``python -m serving.engine_process``, spoken to in frames over stdin and stdout.

Creating an ONNX Runtime session holds the GIL (onnxruntime #27063), so a version loaded inside the endpoint would
freeze every request meanwhile; and a model that crashes takes only its own process with it.

First frame in: ``{"folder", "variant"}``. First frame out: ``{"ready": true, "inputs", "outputs", "seconds"}`` or
``{"error", "type"}`` and the end. From then on ``{"id", "outputs"}`` with tensors is answered by ``{"id"}`` with
tensors, or ``{"id", "error", "type"}``, in whatever order they finish. The process ends when stdin does, that is, also
when the endpoint is killed.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from model_registry.variant import Variant
from serving.engine import Engine
from serving.engine_frames import PREFIX, Frame, decode, encode, sizes
from serving.exceptions import EngineRunError
from serving.tensors import Array

MAX_WORKERS = 4


class Pipe:
    """Frames in on one descriptor, out on the other; any thread may read or write, one at a time."""

    def __init__(self, source: int, sink: int) -> None:
        self._source, self._sink = source, sink
        self._reading, self._writing = threading.Lock(), threading.Lock()

    def read(self) -> Frame | None:
        """The next frame; None at the end of the stream."""
        with self._reading:
            prefix = self._read(PREFIX.size)
            if prefix is None:
                return None
            head, body = sizes(bytes(prefix))
            header, tensors = self._read(head), self._read(body)
        return None if header is None or tensors is None else decode(header, tensors)

    def write(self, header: dict[str, Any], tensors: dict[str, Array] | None = None) -> None:
        """Send one frame, whole."""
        data = memoryview(encode(header, tensors))
        with self._writing:
            while data:
                data = data[os.write(self._sink, data) :]

    def _read(self, size: int) -> memoryview | None:
        buffer = memoryview(bytearray(size))
        done = 0
        while done < size:
            count = os.readv(self._source, [buffer[done:]])
            if count == 0:
                return None
            done += count
        return buffer


def main() -> None:
    """Load what the first frame names, then answer until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the endpoint drains us first
    source, sink = os.dup(0), os.dup(1)
    os.dup2(2, 1)  # whatever a library prints must not land among the frames
    pipe = Pipe(source, sink)
    request = pipe.read()
    if request is None:
        return
    threading.Thread(target=_lifeline, args=(source,), daemon=True).start()
    began = time.perf_counter()
    try:
        engine = Engine(Path(request.header["folder"]), Variant.model_validate(request.header["variant"]))
        engine.warm_up()
    except Exception as error:  # noqa: BLE001 - sent to the endpoint, which raises it there
        pipe.write({"error": str(error), "type": type(error).__name__})
        return
    pipe.write(
        {
            "ready": True,
            "inputs": [spec.model_dump(mode="json") for spec in engine.inputs],
            "outputs": [spec.model_dump(mode="json") for spec in engine.outputs],
            "seconds": round(time.perf_counter() - began, 4),
        }
    )
    count = max(1, min(MAX_WORKERS, len(os.sched_getaffinity(0)) // engine.variant.runtime.intra_op_threads))
    workers = [threading.Thread(target=_work, args=(engine, pipe), daemon=True) for _ in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def _work(engine: Engine, pipe: Pipe) -> None:
    """Leader and followers: whoever reads a frame also runs and answers it, so no request changes threads."""
    try:
        while (request := pipe.read()) is not None:
            answer: dict[str, Any] = {"id": request.header["id"]}
            try:
                outputs = engine.run(request.tensors, request.header["outputs"])
            except EngineRunError as error:
                pipe.write({**answer, "error": str(error), "type": type(error).__name__})
            else:
                pipe.write(answer, outputs)
    except BrokenPipeError:  # the endpoint is gone
        os._exit(0)
    except BaseException:  # noqa: BLE001 - a broken stream or our own bug: end, and be started afresh
        traceback.print_exc()
        os._exit(1)


def _lifeline(source: int) -> None:
    """End this process once nobody can write to it any more, even while every worker is busy in a model."""
    poll = select.poll()
    poll.register(source, 0)  # hang-up only, which is always reported; data would wake us at each request
    poll.poll()
    time.sleep(1)  # a clean end of stdin ends the workers by itself
    os._exit(0)


if __name__ == "__main__":
    main()
    sys.stderr.flush()
    os._exit(0)  # ONNX Runtime's teardown can only cost time from here on
