"""Computations share the machine; a measurement has it alone and is not starved."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from pathlib import Path

import pytest

from tasks.running.errors import UnsafeLock
from tasks.running.machine_lock import machine_lock


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINNOW_MACHINE_LOCK", str(tmp_path / "lock"))


class GaveUp(Exception):
    """Raised from on_wait to stop waiting."""


def _give_up() -> None:
    raise GaveUp


def test_shared_holders_exclude_only_the_exclusive_one() -> None:
    with (
        machine_lock(exclusive=False),
        machine_lock(exclusive=False, on_wait=_give_up),
        pytest.raises(GaveUp),
        machine_lock(exclusive=True, on_wait=_give_up),
    ):
        raise AssertionError("a measurement ran beside a computation")
    with machine_lock(exclusive=True):
        for exclusive in (True, False):
            with pytest.raises(GaveUp), machine_lock(exclusive=exclusive, on_wait=_give_up):
                raise AssertionError("something ran beside a measurement")
    with machine_lock(exclusive=True, on_wait=_give_up):
        pass


def test_a_stream_of_computations_does_not_starve_a_measurement() -> None:
    stop = threading.Event()
    measured = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            with machine_lock(exclusive=False):
                time.sleep(0.05)

    def measure() -> None:
        with machine_lock(exclusive=True):
            measured.set()

    threads = [threading.Thread(target=compute) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    waiting = threading.Thread(target=measure)
    waiting.start()
    assert measured.wait(10)
    stop.set()
    for thread in [*threads, waiting]:
        thread.join()


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where our folder would be made among everybody's, and nothing is named."""
    monkeypatch.delenv("WINNOW_MACHINE_LOCK")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"winnow-{os.getuid()}"


def test_our_folder_in_the_temporary_one_is_ours_alone(temporary: Path) -> None:
    with machine_lock(exclusive=True):
        pass
    assert temporary.stat().st_mode & 0o777 == 0o700
    assert {file.name: file.stat().st_mode & 0o777 for file in temporary.iterdir()} == {
        "turnstile": 0o600,
        "machine": 0o600,
    }


@pytest.mark.parametrize("file", ["turnstile", "machine"])
@pytest.mark.parametrize("mode", [0o700, 0o777])
def test_a_link_that_somebody_prepared_empties_no_file_of_ours(temporary: Path, file: str, mode: int) -> None:
    precious = temporary.parent / "precious"
    precious.write_text("worth keeping")
    temporary.mkdir()
    temporary.chmod(mode)
    (temporary / file).symlink_to(precious)
    with pytest.raises(UnsafeLock, match="set WINNOW_MACHINE_LOCK"), machine_lock(exclusive=False):
        raise AssertionError("it locked a file of somebody else's choice")
    assert precious.read_text() == "worth keeping"


def test_a_folder_that_is_a_link_is_refused(temporary: Path) -> None:
    theirs = temporary.parent / "theirs"
    temporary.symlink_to(theirs)
    with pytest.raises(UnsafeLock, match="cannot be used"), machine_lock(exclusive=False):
        raise AssertionError("it followed a link to nothing")
    theirs.mkdir()
    with pytest.raises(UnsafeLock, match="cannot be used"), machine_lock(exclusive=False):
        raise AssertionError("it followed a link")
    assert list(theirs.iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give a folder away")
def test_a_folder_of_another_user_is_refused(temporary: Path) -> None:
    temporary.mkdir(mode=0o700)
    os.chown(temporary, 65534, 65534)
    with pytest.raises(UnsafeLock, match="belongs to user 65534"), machine_lock(exclusive=False):
        raise AssertionError("it used another user's folder")
