"""``winnow run`` with ``parallel``: whatever of it is killed, nothing is left, and it goes on to its end."""

from __future__ import annotations

import os
import secrets
import signal
from pathlib import Path

import psutil
import pytest
from conftest import RunningStack
from patience import wait_for
from winnow_command import Winnow, stage_lines

_MARK = "WINNOW_TEST_SHARED"
_SPEC = """schema: 1
model: shared-run
workload: {path: "winnow:Digits", arguments: {rows: 900}}
parallel: {shards: 4, processes: 2}
train: {epochs: 40, batch_size: 32, patience: null}
measure: {rounds: 5, seconds: 0.05}
deploy: false
"""


def marked(mark: str, command: str = "") -> list[int]:
    """Processes that were started with the mark and have this in their command, whoever their parent is by now."""
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get(_MARK) == mark and process.status() != psutil.STATUS_ZOMBIE
            if ours and command in " ".join(process.cmdline()):
                found.append(process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


@pytest.mark.slow
def test_a_killed_rank_and_a_killed_flow_cost_nothing_but_time(stack: RunningStack, tmp_path: Path) -> None:
    mark = secrets.token_hex(8)
    winnow = Winnow(tmp_path, stack.home, None, **{_MARK: mark})
    (tmp_path / "shared.yaml").write_text(_SPEC)
    runs = stack.home / "runs"

    def log(name: str) -> str:
        """What the newest run's file says."""
        files = sorted(runs.glob(f"*/{name}"), key=lambda file: file.stat().st_mtime) if runs.exists() else []
        return files[-1].read_text() if files else ""

    process = winnow.start_run("shared.yaml")
    wait_for(lambda: "epoch 3/40" in log("train-rank2.log"), what="the third epoch")
    flow = [process.pid]
    ranks = [pid for pid in marked(mark, "tasks.running.child") if pid not in flow]
    assert len(ranks) >= 2
    os.kill(ranks[-1], signal.SIGKILL)
    wait_for(lambda: "going on from the checkpoint" in log("train.log"), what="a second start")
    process.kill()
    process.communicate()
    wait_for(lambda: not marked(mark), what="the end of all that the run had started")

    report = winnow.report("shared.yaml", code=1)
    assert stage_lines(report)["train"] == "computed", "one variant, refused for not being smaller than itself"
    wait_for(lambda: not marked(mark), what="the end of all that the run had started")
