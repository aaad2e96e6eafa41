"""What a workload reads by itself: noted, and looked at again before a result is taken for current."""

from __future__ import annotations

import socket
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.running import files_read
from tasks.running.files_read import changed_since, watched_reading


@pytest.fixture(autouse=True)
def nothing_is_temporary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests lie in the temporary folder, what is fetched to which is not counted."""
    monkeypatch.setattr(files_read, "_places", ("/nowhere/",))


@contextmanager
def noted(tmp_path: Path, code: str = "") -> Iterator[dict[str, Any]]:
    (tmp_path / "reading_mod.py").write_text(code)
    found: dict[str, Any] = {}
    with watched_reading("reading_mod", str(tmp_path)) as reads:
        yield found
    found |= reads.noted()


def test_a_file_that_was_opened_counts_until_it_changes(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.arange(3))
    with noted(tmp_path) as found:
        np.load(tmp_path / "rows.npy")
        (tmp_path / "written.txt").write_text("by itself")
    assert list(found["files"]) == [str(tmp_path / "rows.npy")]
    assert changed_since(found) == ""
    np.save(tmp_path / "rows.npy", np.arange(4))
    assert changed_since(found) == f"changed since: {tmp_path / 'rows.npy'}"
    (tmp_path / "rows.npy").unlink()
    assert "changed since" in changed_since(found)


def test_a_file_counts_that_only_a_text_in_the_code_names(tmp_path: Path) -> None:
    """A library may open it where the interpreter does not see it."""
    (tmp_path / "rows.parquet").write_bytes(b"1")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "one.png").write_bytes(b"1")
    with noted(tmp_path, 'A = "rows.parquet"\nB = "./pictures"\nC = "a text. Of words"\nD = "."\n') as found:
        pass
    assert set(found["files"]) == {str(tmp_path / "rows.parquet"), str(tmp_path / "pictures" / "one.png")}


def test_what_has_no_state_to_look_up_is_read_again(tmp_path: Path) -> None:
    with socket.socket() as server, noted(tmp_path) as found:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        socket.create_connection(("127.0.0.1", port)).close()
    assert changed_since(found) == f"what it reads from 127.0.0.1:{port} may have changed"


def test_a_database_counts(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "rows.db") as database:
        database.execute("create table rows (x)")
    with noted(tmp_path) as found, sqlite3.connect(tmp_path / "rows.db") as database:
        database.execute("select * from rows")
    assert list(found["files"]) == [str(tmp_path / "rows.db")]


def test_nothing_read_is_nothing_noted(tmp_path: Path) -> None:
    with noted(tmp_path) as found:
        import colorsys  # noqa: F401 - code is no data
    assert found == {} and changed_since(found) == "" and changed_since(None) == ""


def test_too_many_files_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_read, "MOST_FILES", 2)
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text("x")
    with noted(tmp_path) as found:
        for number in range(4):
            (tmp_path / f"{number}.txt").read_text()
    assert changed_since(found) == "what it reads from more than 2 files may have changed"
