"""MLflow's database after a kill in its first start, and before anything could be lost."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from infra.mlflow_database import half_made


def database(path: Path, *statements: str) -> Path:
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()
    return path


def test_what_never_served_is_made_anew(tmp_path: Path) -> None:
    tables = database(tmp_path / "tables.db", "CREATE TABLE webhooks (id TEXT)")
    empty = database(tmp_path / "empty.db", "CREATE TABLE experiments (id TEXT)")
    assert half_made(tables) == (tables, tmp_path / "tables.db-journal")
    assert half_made(empty)[0] == empty
    nothing = tmp_path / "nothing.db"
    nothing.touch()
    assert half_made(nothing)[0] == nothing


def test_what_holds_anything_or_cannot_be_judged_stays(tmp_path: Path) -> None:
    used = database(
        tmp_path / "used.db", "CREATE TABLE experiments (id TEXT)", "INSERT INTO experiments VALUES ('Default')"
    )
    other = tmp_path / "other.db"
    other.write_bytes(b"no database " * 100)
    assert half_made(used) == half_made(other) == half_made(tmp_path / "missing.db") == ()
    with closing(sqlite3.connect(used, isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        assert half_made(used) == ()
