"""MLflow on a real PostgreSQL, by URL, through the stack's own recipe."""

from __future__ import annotations

import getpass
import json
import os
import pwd
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import MLFLOW_USER

from infra import ports
from infra.component import Component, fetch
from infra.daemon import Daemon, census
from infra.faults import StackMisconfigured
from infra.home import Secrets, Settings
from infra.recipes import mlflow_server as mlflow_recipe
from infra.stack import ComponentState, Stack
from model_registry.authorization import mlflow_authorization

if TYPE_CHECKING:
    from conftest import Server

_PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
psycopg2: Any = pytest.importorskip("psycopg2")
pytestmark = pytest.mark.skipif(not _PROGRAMS, reason="PostgreSQL is not installed (apt install postgresql)")


@dataclass(frozen=True)
class Postgres:
    """A running server and a database URL on it, password included."""

    url: str
    password: str


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A PostgreSQL of our own on a free port. It refuses to run as root, so root runs it as the user postgres."""
    user = "postgres" if os.geteuid() == 0 else getpass.getuser()
    account = pwd.getpwnam(user)
    folder = tmp_path_factory.mktemp("postgres")
    password, [port] = "s3cret-in-url", ports.pick(1)
    url = f"postgresql://mlflow:{password}@127.0.0.1:{port}/postgres"
    (folder / "password").write_text(password)
    given: dict[str, Any] = {"cwd": folder, "capture_output": True, "text": True}
    if os.geteuid() == 0:
        for path in (folder, folder / "password"):
            os.chown(path, account.pw_uid, account.pw_gid)
        for parent in folder.parents:  # pytest closes its folders to other users
            if parent.is_relative_to(Path("/tmp")) and parent != Path("/tmp"):
                parent.chmod(0o711)
        given |= {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    made = subprocess.run(
        [
            *(_PROGRAMS[-1] / "initdb", "--pgdata", folder / "data", "--username", "mlflow"),
            *("--auth", "scram-sha-256", "--pwfile", folder / "password", "--no-sync"),
        ],
        check=False,
        **given,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    del given["capture_output"], given["text"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [
                *(_PROGRAMS[-1] / "postgres", "-D", folder / "data", "-p", str(port), "-k", folder),
                *("-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"),
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            **given,
        )
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                psycopg2.connect(
                    host="127.0.0.1", port=port, user="mlflow", password=password, dbname="postgres"
                ).close()
                break
            except psycopg2.OperationalError:
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.1)
        yield Postgres(url, password)
    finally:
        server.terminate()
        server.wait(timeout=30)


class OnlyMlflow(Stack):
    """A stack of one real component: the MLflow server, against the tests' S3."""

    def __init__(self, home: Path, s3: Mapping[str, str]) -> None:
        super().__init__(home)
        self.s3 = s3

    def _components(self, settings: Settings, secrets: Secrets) -> list[Component]:
        port = settings.ports["mlflow"]
        return [mlflow_recipe(self.home.path, port, "s3://mlflow", secrets.mlflow_db, {**self.s3, **MLFLOW_USER})]


def mlflow_of(states: list[ComponentState]) -> ComponentState:
    """MLflow's; S3 is told too where the environment names one, as tests before this one may have it do."""
    (state,) = (each for each in states if each.name == "mlflow")
    return state


def test_runs_are_kept_in_postgresql_and_the_password_is_not_shown(
    postgres: Postgres, s3: Server, tmp_path: Path
) -> None:
    stack = OnlyMlflow(tmp_path / ".winnow", s3.environment)
    [port] = ports.pick(1)
    try:
        state = mlflow_of(stack.up(ports={"mlflow": port}, mlflow_db=postgres.url))
        assert state.state == "up"
        body = json.dumps({"name": "in-postgres"}).encode()
        created = f"{state.url}/api/2.0/mlflow/experiments/create"
        headers = {"Content-Type": "application/json", **mlflow_authorization(MLFLOW_USER)}
        assert fetch(created, method="POST", body=body, headers=headers, timeout=30)[0] == 200
        connection = psycopg2.connect(postgres.url)
        with connection.cursor() as cursor:
            cursor.execute("select count(*) from experiments where name = 'in-postgres'")
            assert cursor.fetchone() == (1,)
        connection.close()
        assert not list((tmp_path / ".winnow" / "mlflow").glob("*.db"))
        for process in census(stack.home.path)["mlflow"]:
            assert postgres.password.encode() not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
        assert postgres.password not in stack.home.settings_file.read_text()
        assert postgres.password not in "\n".join(Daemon("mlflow", stack.home.path).tail(1000))
        stack.down()
        state = mlflow_of(stack.up())  # the database is remembered
        kept = f"{state.url}/api/2.0/mlflow/experiments/get-by-name?experiment_name=in-postgres"
        assert fetch(kept, timeout=30, headers=mlflow_authorization(MLFLOW_USER))[0] == 200
    finally:
        stack.down()


def test_a_database_that_cannot_be_used_is_told_at_once_and_not_remembered(
    postgres: Postgres, s3: Server, tmp_path: Path
) -> None:
    stack = OnlyMlflow(tmp_path / ".winnow", s3.environment)
    nowhere, port = ports.pick(2)
    with pytest.raises(StackMisconfigured, match=r"database of MLflow .*[Cc]onnection refused") as failed:
        stack.up(ports={"mlflow": port}, mlflow_db=f"postgresql://mlflow:hidden@127.0.0.1:{nowhere}/mlflow")
    assert "hidden" not in str(failed.value)
    with pytest.raises(StackMisconfigured, match="password authentication failed"):
        stack.up(ports={"mlflow": port}, mlflow_db=postgres.url.replace(postgres.password, "wrong"))
    assert census(stack.home.path) == {}
    assert stack.home.secrets() is None
