"""When the checks' process is started ahead of a run, and that a run can be stopped."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from measurements import run_report
from patience import PATIENCE

from flows.commands import command_run
from model_registry.run_page import Status


@pytest.mark.parametrize(
    ("status", "champion", "settled"),
    [
        ("released", None, True),  # the first one, or the champion itself again
        ("released", "c" * 64, False),  # in another's place: the next run validates it against nobody
        ("refused", "c" * 64, True),
        ("registered", "c" * 64, True),
    ],
)
def test_a_run_that_changed_the_champion_leaves_something_to_check(
    tmp_path: Path, status: Status, champion: str | None, settled: bool
) -> None:
    mark = tmp_path / "cache" / "checked-x"
    report = run_report(status, champion=champion)
    command_run._remember_checked(report, mark)
    assert mark.exists() == settled
    command_run._remember_checked(report.model_copy(update={"stages": ()}), mark)  # its data were never checked
    assert not mark.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_run_whoever_took_it_and_whatever_hangs(number: signal.Signals) -> None:
    code = f"""
import signal, time
from flows.commands import command_run
command_run._GRACE_SECONDS = 0.3
command_run._stop_on_signals(lambda: None, lambda: print("told", flush=True))
signal.signal({int(number)}, lambda *_: print("taken", flush=True))  # as Prefect takes SIGTERM
print("ready", flush=True)
while True:
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(timeout=PATIENCE) == 130
        assert process.stdout.read() == "taken\ntold\n"
