"""Entries that tests run in child processes: each does one thing a real algorithm might do."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tasks.running.child import Child, Result
from tasks.running.errors import DataCheckFailed


def echo(child: Child) -> Result:
    """Answer with what was asked; leave a line in ``extra['count']`` so that computations can be counted."""
    print("echo at work")
    child.progress(0.5, "half")
    if "count" in child.spec:
        with Path(child.spec["count"]).open("a") as stream:
            stream.write("x\n")
    entry = child.store.publish_bytes(str(child.spec.get("content", "hello")).encode(), "answer.txt")
    return Result(values={"spec": child.spec, "seed": child.job.seed, "modules": sorted(sys.modules)}, files=(entry,))


def whoami(child: Child) -> Result:
    """Tell the process."""
    return Result(values={"pid": os.getpid()})


def flags(child: Child) -> Result:
    """Tell whether what is imported here stays compiled."""
    return Result(values={"dont_write_bytecode": sys.dont_write_bytecode})


def slow(child: Child) -> Result:
    """Count, then take a while."""
    result = echo(child)
    time.sleep(float(child.spec["sleep"]))
    return result


def hang(child: Child) -> Result:
    """Print, start a grandchild, tell both pids, and never end."""
    print("about to hang")
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(child.spec["pids"]).write_text(f"{os.getpid()} {grandchild.pid}")
    time.sleep(600)
    return Result()


def grow(child: Child) -> Result:
    """Allocate without end."""
    print("growing")
    hoard = []
    while True:
        hoard.append(os.urandom(16 << 20))
        time.sleep(0.02)


def grow_below(child: Child) -> Result:
    """Let a process of its own hold 400 MiB, as a worker of a data loader might."""
    subprocess.run([sys.executable, "-c", "import time; hoard = b'x' * (400 << 20); time.sleep(600)"], check=True)
    return Result()


def die(child: Child) -> Result:
    """Die as a crashed native library does."""
    print("last words")
    os.abort()


def refuse(child: Child) -> Result:
    """Raise a named error with details."""
    raise DataCheckFailed("rows 3 and 5 are null", rows=[3, 5])


def explode(child: Child) -> Result:
    """Raise what nobody named."""
    raise ZeroDivisionError("a surprise")


def not_a_number(child: Child) -> Result:
    """Answer with NaN, which is not JSON."""
    return Result(values={"loss": float("nan")})
