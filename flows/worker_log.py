"""Where a run of the embedded worker writes to: straight into the worker's log."""

from __future__ import annotations

import os
import stat
import sys

from infra.daemon import Daemon
from infra.home import Home


def write_past_worker() -> None:
    """Turn standard output and error from the pipe that the worker reads to the file that it copies them into.

    When a worker is killed its run goes on, but at the first line to a pipe that nobody reads rich, which Prefect logs
    with, ends the process. Does nothing where no embedded worker carries this process out.
    """
    log = Daemon("worker", Home.from_environment().path).log_file
    if "PREFECT__FLOW_RUN_ID" not in os.environ or not log.exists():
        return
    sys.stdout.flush()
    sys.stderr.flush()
    for descriptor in (1, 2):
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            opened = os.open(log, os.O_WRONLY | os.O_APPEND)
            os.dup2(opened, descriptor)
            os.close(opened)
