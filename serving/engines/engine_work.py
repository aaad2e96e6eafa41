"""What an engine process does: read a frame of request bodies, run it as one batch, answer it in one write.

One thread reads, computes and answers in turn: two threads would hand the interpreter's lock to each other for longer
than a small model runs. The next frame waits in the socket meanwhile.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import orjson

from serving.engines.engine_frames import PLAIN, Answered, EngineWork, FrameCutter, pack_answered
from serving.engines.frame_worker import FrameWorker
from serving.limits import RequestLimits

_READ = 1 << 18


def serve_engine(connection: socket.socket, order: dict[str, Any]) -> None:
    """Load what the order names, say how it is served, then answer until the other side closes.

    Args:
        connection: to the front; its first answer, of number 0, says what was loaded or why nothing was.
        order: ``folder``, ``variant``, ``model``, ``version``.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the front drains us first
    threading.Thread(target=_lifeline, args=(connection.fileno(),), daemon=True).start()
    try:
        worker = FrameWorker(order, RequestLimits())
    except Exception as error:  # noqa: BLE001 - sent to the front, which raises it there
        _send(connection, 500, {"error": str(error), "type": type(error).__name__})
        return
    tokens = None
    if worker.engine.decoder is not None:
        from serving.decoding.token_worker import TokenWorker, token_loop  # brings tokenizers, which few models need

        try:
            tokens = TokenWorker(worker, token_loop(worker.engine, Path(order["folder"])))
        except Exception as error:  # noqa: BLE001 - as above
            _send(connection, 500, {"error": str(error), "type": type(error).__name__})
            return
    gc.collect()
    gc.freeze()  # what was loaded stays: the collector need not look at it again
    _send(connection, 200, worker.ready)
    try:
        if tokens is not None:
            tokens.work(connection)
        else:
            _work(connection, worker)
    except (BrokenPipeError, ConnectionResetError):  # the front is gone
        return


def _work(connection: socket.socket, worker: FrameWorker) -> None:
    cutter = FrameCutter()
    while data := connection.recv(_READ):
        for frame in cutter.feed(data):
            worker.answer(connection, frame)


def _send(connection: socket.socket, status: int, facts: dict[str, Any]) -> None:
    body = orjson.dumps(facts)
    connection.sendall(pack_answered([Answered(0, body, -1, status, PLAIN)], EngineWork(0, 0, 0, 0, 0, True)))


def _lifeline(descriptor: int) -> None:
    """End this process once the other side is gone, even while the model runs."""
    poll = select.poll()
    poll.register(descriptor, select.POLLRDHUP)  # no data: that would wake us at each request
    poll.poll()
    time.sleep(1)  # a clean end ends the process by itself
    os._exit(0)


def run_and_exit(connection: socket.socket, order: dict[str, Any]) -> None:
    """:func:`serve_engine` as all that a process does; never returns."""
    try:
        serve_engine(connection, order)
    except BaseException:  # noqa: BLE001 - a broken stream or a fault of ours: end, and be started afresh
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    sys.stderr.flush()
    os.nice(19)  # to give back its memory takes milliseconds of a core that others may need now
    os._exit(0)  # ONNX Runtime's teardown can only cost time from here on
