"""infra/compose.yaml: valid, and the same stack as that of ``winnow up``. No test here has Docker to run it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.home import USER, Secrets, Settings
from infra.recipes import endpoint, mlflow_server, prefect_server, prefect_worker, s3_server
from infra.stack import NAMES
from model_registry.quiet import QUIET

FILE = Path(__file__).parent.parent / "infra" / "compose.yaml"


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(FILE.read_text())["services"]
    return found


def test_it_is_valid() -> None:
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(FILE)]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_has_the_stacks_components(services: dict[str, Any]) -> None:
    assert set(services) == {*NAMES, "prepare"}


def test_nothing_calls_home_and_nothing_is_published_beyond_loopback(services: dict[str, Any]) -> None:
    switches = {name: value for name, value in QUIET.items() if value}  # the others only undo what a shell may have set
    for name, service in services.items():
        assert switches.items() <= service["environment"].items(), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
    assert "-master.telemetry=false" in services["s3"]["command"]


def test_its_commands_are_those_of_the_recipes(services: dict[str, Any]) -> None:
    environment = {"PREFECT_API_URL": "http://127.0.0.1:4200/api", "PREFECT_API_AUTH_STRING": "winnow:x"}
    home = Path("/data")
    recipes = {
        "s3": s3_server(home, Settings(), Secrets()),
        "mlflow": mlflow_server(home, 5000, "s3://winnow", "", environment),
        "prefect": prefect_server(home, 4200, environment),
        "worker": prefect_worker(home, 1, environment),
    }
    # Where they listen, and what is sized for one machine, differs on purpose.
    own = re.compile(r"-(ip|dir|logtostderr|host|.*[pP]ort|.*Socket|.*volumeSizeLimitMB|with-healthcheck)\b")
    for name, recipe in recipes.items():
        command = services[name]["command"].replace('"', "")
        flags = [part for part in recipe.argv if part.startswith("-") and part != "-m"]
        assert len(flags) >= 2
        flags = [flag for flag in flags if not own.match(flag.replace("--", "-"))]
        for flag in flags:
            assert flag in command, (name, flag)


def test_the_endpoint_gets_what_it_reads_and_no_more() -> None:
    given = {"WINNOW_JWT_KEYS": "k", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "AWS_REGION": "r", "OTHER": "x"}
    found = endpoint(Path("/data"), Settings(), Secrets(), given).environment
    assert {name for name in given if name in found} == set(given) - {"OTHER"}


def test_every_secret_is_demanded_and_explained(services: dict[str, Any]) -> None:
    text = FILE.read_text()
    demanded = set(re.findall(r"\$\{(\w+):\?", text))
    ours = {"WINNOW_ADMIN_TOKEN", "WINNOW_SIGNING_KEY", "WINNOW_PASSWORD"}
    assert demanded == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", *ours}
    head = text.split("\nname:")[0]
    assert all(f"{name}=%s" in head for name in demanded)


def test_nothing_is_open_that_the_stack_closes(services: dict[str, Any]) -> None:
    """The parts of the S3 server have certificates, MLflow and Prefect one password."""
    assert services["s3"]["command"].startswith("python -m infra.certificates /data/certificates weed ")
    assert "--app-name winnow" in services["mlflow"]["command"]
    for name in ("mlflow", "prefect", "worker"):
        environment = services[name]["environment"]
        password = environment["MLFLOW_TRACKING_PASSWORD"]
        assert environment["MLFLOW_TRACKING_USERNAME"] == USER and "WINNOW_PASSWORD" in password
        assert environment["PREFECT_API_AUTH_STRING"] == f"{USER}:{password}"
    prefect = services["prefect"]["environment"]
    assert prefect["PREFECT_SERVER_API_AUTH_STRING"] == prefect["PREFECT_API_AUTH_STRING"]
