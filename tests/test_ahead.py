"""What is imported ahead is what the end of a run imports otherwise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_CODE = """
import sys, threading
from tasks.running.machine_lock import machine_lock
from tasks.running.stage import Outcome
from tasks.running.stage_plan import Plan, planning
from flows.ahead import import_ahead

def importing():
    return [t for t in threading.enumerate() if t.name == "import-ahead"]

def made(status):
    return Outcome(stage="train", name="train", status=status, seconds=1.0, key="k", version="v")

import_ahead(made("reused"))
assert not importing(), "nothing new, nothing to draw"
token = planning.set(Plan())
import_ahead(made("computed"))
assert not importing(), "a plan computes nothing"
planning.reset(token)
with machine_lock(exclusive=True):
    import_ahead(made("reused"), made("computed"))
    (thread,) = importing()
    thread.join(0.3)
    assert thread.is_alive() and "matplotlib" not in sys.modules, "somebody measures"
import_ahead(made("computed"))
assert importing() == [thread], "once is enough"
thread.join()
print(sorted({"mlflow", "matplotlib.figure", "onnxruntime", "torch"} & set(sys.modules)))
"""


def test_imports_once_and_not_while_somebody_measures(tmp_path: Path) -> None:
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "WINNOW_MACHINE_LOCK": str(tmp_path / "lock"),
    }
    done = subprocess.run(
        [sys.executable, "-P", "-c", _CODE], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "['matplotlib.figure']", done.stderr
