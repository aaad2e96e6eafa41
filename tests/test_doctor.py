"""winnow doctor: what is wrong is found, and each finding says how to fix it."""

from __future__ import annotations

import json
import shutil
import socket
from collections import namedtuple
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from conftest import RunningStack
from winnow_command import Winnow

from flows.commands import stack_doctor
from flows.commands.stack_doctor import DoctorCheck, examine
from infra import ports
from infra.home import Home, Secrets, Settings
from infra.stack import Stack
from model_registry.store import Store


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A folder that had a stack once; nothing runs."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    made = Home(tmp_path / ".winnow")
    names = [port.name for port in ports.PUBLIC]
    made.save(Settings(ports=dict(zip(names, ports.pick(len(names)), strict=True))), Secrets())
    return made


def found(home: Home) -> dict[str, DoctorCheck]:
    return {check.name: check for check in examine(Stack(home.path))}


def test_a_healthy_stack_passes_every_check(stack: RunningStack, tmp_path: Path) -> None:
    done = Winnow(tmp_path, stack.home)("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    expected = {"python", "libraries", "machine", "disk", "ports", "S3", "MLflow", "Prefect", "worker", "endpoint"}
    assert expected <= set(checks)
    wrong = {name: check["found"] for name, check in checks.items() if check["verdict"] == "fail"}
    assert done.returncode == 0 and wrong == {}
    assert "conditional put" in checks["S3"]["found"]
    assert checks["ports"]["found"].startswith("ours: s3 ") and "free" not in checks["ports"]["found"]


def test_a_machine_without_a_stack_is_warned_not_failed(home: Home) -> None:
    checks = found(home)
    assert checks["stack"].verdict == "warn" and checks["stack"].remedy == "winnow up"
    assert checks["ports"].found.startswith("free: s3 ")
    assert "fail" not in {check.verdict for check in checks.values()}
    assert all(check.remedy for check in checks.values() if check.verdict != "ok")


def test_a_foreign_listener_on_our_port_is_a_failure(home: Home) -> None:
    settings = home.settings()
    assert settings is not None
    with socket.create_server(("127.0.0.1", settings.ports["mlflow"])):
        check = next(c for c in examine(Stack(home.path)) if c.name == "ports" and c.verdict == "fail")
    assert str(settings.ports["mlflow"]) in check.found and "MLflow" in check.found
    assert check.remedy == "winnow up --mlflow-port PORT"


def test_open_secrets_are_a_failure(home: Home) -> None:
    home.secrets_file.chmod(0o644)
    check = found(home)["secrets"]
    assert check.verdict == "fail" and check.remedy == f"chmod 600 {home.secrets_file}"


@pytest.mark.parametrize(("free", "verdict"), [(1 << 29, "fail"), (2 << 30, "warn"), (9 << 30, "ok")])
def test_disk_space(home: Home, monkeypatch: pytest.MonkeyPatch, free: int, verdict: str) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 40, 0, free))
    assert found(home)["disk"].verdict == verdict


def test_a_library_of_another_version_is_named_with_the_tested_one(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = metadata.version
    monkeypatch.setattr(metadata, "version", lambda n: "0.165.0" if n == "fastapi" else genuine(n))
    check = found(home)["libraries"]
    assert check.verdict == "warn" and "fastapi 0.165.0 (tested: 0.150" in check.found and "pip install" in check.remedy


def test_a_missing_library_is_a_failure(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = metadata.version

    def version(name: str) -> str:
        if name == "mlflow":
            raise metadata.PackageNotFoundError(name)
        return genuine(name)

    monkeypatch.setattr(metadata, "version", version)
    check = found(home)["libraries"]
    assert check.verdict == "fail" and check.found == "not installed: mlflow"


def test_a_store_without_conditional_puts_is_a_failure(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stack_doctor._store().verdict == "ok"
    assert store.list_objects("doctor/") == []  # it tidies up
    monkeypatch.setattr(Store, "put_if_absent", lambda *_: True)
    check = stack_doctor._store()
    assert check.verdict == "fail" and "If-None-Match is ignored" in check.found
    monkeypatch.undo()


def test_wrong_keys_are_a_failure_in_words(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    check = stack_doctor._store()
    assert check.verdict == "fail" and "AWS_SECRET_ACCESS_KEY" in check.found


def test_servers_that_do_not_answer_are_failures() -> None:
    [port] = ports.pick(1)
    url = f"http://127.0.0.1:{port}"
    there = {"MLFLOW_TRACKING_URI": url, "PREFECT_API_URL": f"{url}/api"}
    checks: list[Any] = [stack_doctor._mlflow(there), *stack_doctor._prefect(there), stack_doctor._endpoint(url)]
    assert [check.verdict for check in checks] == ["fail"] * 3
    assert all(check.remedy for check in checks)


def test_doctor_prints_a_line_each_and_exits_by_the_worst(home: Home, tmp_path: Path) -> None:
    winnow = Winnow(tmp_path, home.path)
    done = winnow("doctor")
    assert done.returncode == 0 and done.stdout.splitlines()[0].startswith("ok    python")
    assert "-> winnow up" in done.stdout and done.stdout.splitlines()[-1].endswith("warnings.")
    home.secrets_file.chmod(0o644)
    assert winnow("doctor").returncode == 1
