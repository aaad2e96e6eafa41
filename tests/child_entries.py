"""Entries that tests run in child processes: each does one thing a real algorithm might do."""

from __future__ import annotations

import os
import random
import re
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


def ask(child: Child) -> Result:
    """Ask whoever sits there, as a workload with a forgotten breakpoint() does."""
    return Result(values={"answer": input("go on? ")})


def escape(child: Child) -> Result:
    """Start a process in a session of its own, as a daemon, tell both pids, and answer."""
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    Path(child.spec["pids"]).write_text(f"{os.getpid()} {grandchild.pid}")
    if child.spec.get("die"):
        os.abort()
    return Result()


def escape_and_hang(child: Child) -> Result:
    """The same, but for the answer."""
    escape(child)
    time.sleep(600)
    return Result()


def hold_the_lock(child: Child) -> Result:
    """Tell the pid, then hold the interpreter's lock, as an extension may: no other thread runs."""
    Path(child.spec["pids"]).write_text(str(os.getpid()))
    re.match(r"(a+)+$", "a" * 60 + "b")
    return Result()


def draw_a_bar(child: Child) -> Result:
    """Print 26 MB without a newline, then die."""
    for fraction in range(400):
        sys.stdout.write("\r" + "#" * 65_536 + f" {fraction} of 400")
    sys.stdout.flush()
    os.abort()


def refuse_oddly(child: Child) -> Result:
    """Raise a named error with details and a text that are not JSON."""
    raise DataCheckFailed("row \ud800", row=object(), worst=float("nan"))


def speechless(child: Child) -> Result:
    """Raise an error whose text cannot be made."""

    class Speechless(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    raise Speechless


def close_stdout(child: Child) -> Result:
    """Close what the log is read from."""
    sys.stdout.close()
    return Result(values={"closed": True})


def fork(child: Child) -> Result:
    """Fork carelessly: both sides go on."""
    os.fork()
    return Result(values={"pid": os.getpid()})


def leave_traces(child: Child) -> Result:
    """Change all that the next stage in the same process might see."""
    import torch
    import traces_left

    os.chdir("/")
    os.environ["TRACES"] = "left"
    sys.path.insert(0, "/traces")
    torch.set_default_dtype(torch.float64)
    traces_left.count += 1
    return Result(values={"pid": os.getpid(), "count": traces_left.count})


def find_traces(child: Child) -> Result:
    """Tell what :func:`leave_traces` left."""
    import torch
    import traces_left

    found = {
        "folder": str(Path.cwd()) == "/",
        "environment": "TRACES" in os.environ,
        "path": "/traces" in sys.path,
        "dtype": torch.get_default_dtype() != torch.float32,
        "count": traces_left.count,
    }
    return Result(values={"pid": os.getpid(), "found": found, "drawn": random.random()})
