"""MLflow's SQLite file after a first start that was killed: its migrations cannot be taken up again."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path


def half_made(path: Path) -> tuple[Path, ...]:
    """The files to remove, so that the next start makes the database again; none where it may hold anything.

    The server makes the tables, then its first experiment, and only then answers: a database without an experiment
    has never served anybody. It would not serve either, for a migration that was cut off fails over its own tables.
    """
    if not path.exists():
        return ()
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        try:
            (experiments,) = database.execute("SELECT count(*) FROM experiments").fetchone()
        except sqlite3.OperationalError as error:
            if "no such table" not in str(error):  # locked, or unreadable: not ours to judge
                return ()
            experiments = 0
        except sqlite3.DatabaseError:  # no database at all: the server says so
            return ()
    return () if experiments else (path, path.with_name(f"{path.name}-journal"))
