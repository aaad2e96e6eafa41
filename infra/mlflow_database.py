"""MLflow's database: where it is, its trash emptied, and its file after a first start that was killed."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from infra.faults import StackError


def database_url(home: Path, given: str) -> str:
    """The URL that was given, else of a file in the stack's folder."""
    return given or f"sqlite:///{home / 'mlflow' / 'mlflow.db'}"


def empty_trash(url: str, artifacts: str, *, days: float) -> None:
    """Remove for good what has lain in MLflow's trash for so many days: runs, models, experiments, and their files.

    Its server has no request for that; ``mlflow gc`` works on the database, while the server runs too.

    Args:
        url: of the database.
        artifacts: where the server puts the files.

    Raises:
        StackError: it failed; what it says.
    """
    done = subprocess.run(
        [sys.executable, "-c", _GC, "--older-than", f"{days:f}d", "--artifacts-destination", artifacts],
        env={**os.environ, "MLFLOW_BACKEND_STORE_URI": url},  # not as an argument, which every user could read
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise StackError(f"MLflow's trash could not be emptied: {done.stderr.strip()[-1000:]}")


_GC = """
import os, sys
from mlflow.cli import gc
gc(["--backend-store-uri", os.environ["MLFLOW_BACKEND_STORE_URI"], *sys.argv[1:]])
"""


def half_made(path: Path) -> tuple[Path, ...]:
    """The SQLite files to remove, so that the next start makes the database again; none where they may hold anything.

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
