"""A user's own script under torchrun: fit() finds the other processes by the environment, and nothing is left."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
import torch.distributed as dist
from patience import PATIENCE, wait_for

from tasks.running.errors import SpecError
from tasks.running.ranks import Ranks, by_environment

if TYPE_CHECKING:
    from rank_script import digest, trained
else:  # tests/ is no package at run time
    from rank_script import digest, trained

HERE = Path(__file__).parent
_MARK = "WINNOW_TEST_TORCHRUN"


def marked(mark: str) -> list[psutil.Process]:
    """Processes that were started with the mark in their environment, whoever their parent is by now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(_MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


@contextmanager
def torchrun(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """torchrun with two workers, and the mark of its processes. It starts workers in sessions of their own, so that
    they outlive it when its group is killed: whatever has the mark is ended."""
    mark = secrets.token_hex(8)
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments],
        env={**os.environ, "PYTHONPATH": f"{HERE.parent}:{HERE}", "GLOO_SOCKET_IFNAME": "lo", _MARK: mark},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process, mark
    finally:
        process.kill()
        for left in marked(mark):
            left.kill()
        process.communicate()
        wait_for(lambda: not marked(mark), what="the end of torchrun's workers")


@pytest.mark.slow
def test_a_script_under_torchrun_has_the_digests_of_one_process(tmp_path: Path) -> None:
    with torchrun(str(HERE / "rank_script.py"), "torchrun", str(tmp_path)) as (process, mark):
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors
        assert marked(mark) == [], "it ends with nothing left"
    dropout, batchnorm = (digest(*trained(case)) for case in ("dropout", "batchnorm"))
    found = [json.loads((tmp_path / f"torchrun-{rank}.txt").read_text()) for rank in (0, 1)]
    assert found == [[dropout, batchnorm, dropout]] * 2


def test_without_its_variables_a_process_is_one_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    with by_environment(wanted=True, cpu=True) as ranks:
        assert ranks == Ranks() and not dist.is_initialized()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with by_environment(wanted=False, cpu=True) as ranks:
        assert ranks == Ranks(), "a training without shards is not shared"


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2, WORLD_SIZE=2, .*RANK must be at least 0 and below WORLD_SIZE"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK and WORLD_SIZE must be whole numbers; start the script with torchrun"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": ""}, "need MASTER_ADDR and MASTER_PORT to meet"),
    ],
)
def test_variables_that_do_not_fit_are_refused(
    variables: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SpecError, match=says), by_environment(wanted=True, cpu=True):
        pass
