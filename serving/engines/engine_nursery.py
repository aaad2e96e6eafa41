"""A process that has imported everything, and becomes engines by forking: ``python -m serving.engines.engine_nursery``.

An engine is there in milliseconds instead of a second, which is what makes a killed one cost no answer; and engines
share the pages of what was imported. It never makes a session, so that nothing of a model is forked.

Orders come over a SOCK_SEQPACKET socket (its descriptor is the argument), JSON with the engine's own socket beside it:
``{"number", "folder", "variant", "model", "version"}`` is answered by ``{"number", "pid"}`` or ``{"number",
"error"}``; ``{"gone", "status"}`` says how an engine ended. The nursery ends when the front closes the socket; engines
end with their own.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import select
import signal
import socket
import sys
from typing import Any

import orjson

from serving.engines.engine_frames import LONGEST_ORDER
from serving.engines.engine_work import run_and_exit
from serving.telemetry.log_lines import configure_log

_PR_SET_NAME = 15
ENGINE_NAME = b"winnow-engine"
"""What ``ps`` and ``top`` call the process."""


def main() -> None:
    """Fork an engine for each order until the front is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    configure_log()
    os.dup2(2, 1)  # whatever a library prints belongs into the log
    control = socket.socket(fileno=int(sys.argv[1]))
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # a handler, so that the descriptor below is written to
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    gc.collect()
    gc.freeze()  # what was imported is not touched by the collectors of the engines, and so stays shared
    control.send(b'{"ready":true}')
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(wake, select.POLLIN)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == wake:
                os.read(wake, 4096)
                _report_ended(control)
            elif not _take_order(control, (wake, woken)):
                return


def _take_order(control: socket.socket, ours: tuple[int, ...]) -> bool:
    """Fork for the next order; false at the end."""
    message, descriptors, _, _ = socket.recv_fds(control, LONGEST_ORDER, 1)
    if not message:
        return False
    order = orjson.loads(message)
    answer: dict[str, Any] = {"number": order["number"]}
    try:
        child = os.fork()
    except OSError as error:
        answer["error"] = f"no process can be started: {error.strerror}"
    else:
        if child == 0:
            _become_engine(control, ours, descriptors[0], order)
        answer["pid"] = child
    os.close(descriptors[0])
    control.send(orjson.dumps(answer))
    return True


def _become_engine(control: socket.socket, ours: tuple[int, ...], descriptor: int, order: dict[str, Any]) -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    control.close()
    for other in ours:
        os.close(other)
    with contextlib.suppress(OSError, AttributeError):  # another system than Linux
        ctypes.CDLL(None).prctl(_PR_SET_NAME, ENGINE_NAME, 0, 0, 0)
    run_and_exit(socket.socket(fileno=descriptor), order)


def _report_ended(control: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        with contextlib.suppress(OSError):  # the front is gone: the next read says so
            control.send(orjson.dumps({"gone": pid, "status": os.waitstatus_to_exitcode(status)}))


if __name__ == "__main__":
    main()
