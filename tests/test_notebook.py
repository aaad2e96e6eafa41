"""Runs in a Python that goes on: interrupted, run again, under a running event loop, and in another thread."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx
from conftest import RunningStack
from patience import PATIENCE
from winnow_command import environment

_NOTEBOOK = """
import asyncio, json, os, signal, sys, threading, time
import psutil
from flows.compress import compress
from flows.spec import load_spec
from tasks.running.stage_cache import listener

# A seed of its own: no other test's run has made what this one is interrupted at.
spec = load_spec("tiny", ["model=notebook", "seed=4711", "deploy=false", "distill=null", "prune=null"])
cells = []

def children():
    # But for the guard, which stays as long as this process does.
    below = psutil.Process().children(recursive=True)
    return sum("process_guard.py" not in " ".join(process.cmdline()) for process in below)

def press_ctrl_c(name, fraction, text):
    if name == "train" and 0 < fraction < 1 and not cells:
        cells.append({"interrupted in": name, "children": children()})
        os.kill(os.getpid(), signal.SIGINT)

def cell():
    report = compress(spec)
    cells.append({
        "status": report.status,
        "prefect": report.prefect_run,
        "notes": report.notes,
        "computed": [line.name for line in report.stages if line.status == "computed"],
        "children": children(),
    })

async def kernel():  # as a notebook's: what a cell runs, runs inside of the loop
    listener.set(press_ctrl_c)
    try:
        cell()
    except KeyboardInterrupt:
        cells.append({"status": "interrupted", "children": children()})
    listener.set(None)
    cell()

asyncio.new_event_loop().run_until_complete(kernel())
thread = threading.Thread(target=cell)
thread.start()
thread.join()
print(json.dumps(cells))
"""


def test_a_run_after_an_interrupted_one(stack: RunningStack, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error::RuntimeWarning", "-c", _NOTEBOOK],
        env=environment(**stack.environment),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    pressed, interrupted, again, threaded = json.loads(done.stdout)
    assert pressed["interrupted in"] == "train" and pressed["children"] > 0
    assert interrupted == {"status": "interrupted", "children": 0}
    assert (again["status"], again["children"]) == ("registered", 0)
    assert "train" in again["computed"]
    assert (threaded["status"], threaded["children"]) == ("registered", 0)
    assert set(threaded["computed"]) == {"track", "register", "show"}
    for cell in (again, threaded):
        assert not [note for note in cell["notes"] if "not shown" in note]
        shown = httpx.post(
            f"{stack.environment['PREFECT_API_URL']}/artifacts/filter",
            json={"artifacts": {"flow_run_id": {"any_": [cell["prefect"]]}}},
            headers=stack.prefect_headers,
        ).json()
        assert {artifact["key"] for artifact in shown} >= {"notebook-variants", "notebook-pareto"}
