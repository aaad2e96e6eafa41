"""A process that answers JSON requests: what it says, and how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from model_registry.answering import AnsweringFailed, AskedProcess

MODULE = """
import os, time
from model_registry.answering import answer_requests

def answer(request):
    if "exit" in request:
        os._exit(request["exit"])
    if "sleep" in request:
        time.sleep(request["sleep"])
    print("a library prints this")
    return {"sum": sum(request["numbers"])}

answer_requests(answer, come_to_rest=lambda: open(f"{os.environ['RESTED']}", "a").write("x"))
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "adder_process.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(__file__).parent.parent)]))
    monkeypatch.setenv("RESTED", str(tmp_path / "rested"))
    return "adder_process"


def test_it_answers_one_request_after_the_other_and_says_when_it_rests(
    module: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with AskedProcess(module) as process:
        process.wait_ready()
        process.wait_ready()
        assert (tmp_path / "rested").read_text() == "x"
        assert process.ask({"numbers": [1, 2]}) == {"sum": 3}
        assert process.ask({"numbers": [0.5]}) == {"sum": 0.5}
        process.wait_ready()
    assert (tmp_path / "rested").read_text() == "xxx"
    assert capfd.readouterr().err.count("a library prints this") == 2


def test_a_refused_request_is_an_error_and_the_end(module: str, capfd: pytest.CaptureFixture[str]) -> None:
    with AskedProcess(module) as process:
        with pytest.raises(AnsweringFailed, match=r"^KeyError: 'numbers'$"):
            process.ask({})
        with pytest.raises(AnsweringFailed, match=r"died \(exit code 1\)"):
            process.ask({"numbers": []})
    assert "Traceback" in capfd.readouterr().err


def test_a_death_is_reported_with_its_code(module: str) -> None:
    with AskedProcess(module) as process, pytest.raises(AnsweringFailed, match=r"died \(exit code 7\)"):
        process.ask({"exit": 7})


def test_a_module_that_does_not_start_is_reported(capfd: pytest.CaptureFixture[str]) -> None:
    with AskedProcess("no_such_module_here") as process, pytest.raises(AnsweringFailed, match="exit code 1"):
        process.wait_ready()
    assert "no_such_module_here" in capfd.readouterr().err


def test_closing_ends_it_in_the_middle_of_a_request(module: str) -> None:
    process = AskedProcess(module)
    process.wait_ready()
    assert process._popen.stdin is not None
    process._popen.stdin.write('{"sleep": 60, "numbers": []}\n')
    process._popen.stdin.flush()
    process.close()
    assert process._popen.returncode is not None


def test_it_ends_with_whoever_asks_even_killed(module: str) -> None:
    code = f"""
import os, signal
from model_registry.answering import AskedProcess
process = AskedProcess({module!r})
process.wait_ready()
print(process._popen.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    pid, end = int(done.stdout), time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end, "it outlived its asker"
        time.sleep(0.05)
