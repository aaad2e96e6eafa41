"""What pyproject.toml asks for is what the code imports, and the base dependencies are the endpoint's."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from endpoint_process import endpoint
from onnx_models import digits, publish
from packaging.requirements import Requirement
from patience import PATIENCE

from model_registry.ledger import Ledger
from model_registry.store import Store

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BASE: list[str] = PROJECT["dependencies"]
PIPELINE: list[str] = PROJECT["optional-dependencies"]["pipeline"]
EXTRAS: list[str] = [
    line
    for name in ("grpc", "jwt", "otel", "ray", "xla", "fpga", "text", "llm")
    for line in PROJECT["optional-dependencies"][name]
]
PACKAGES = ("winnow", "flows", "tasks", "model_registry", "serving", "infra")
COME_WITH = {"botocore": "boto3", "markupsafe": "jinja2", "scipy": "scikit-learn", "types_boto3_s3": "for types only"}
"""Part of what another dependency promises."""
INSTALLER = {"pip", "setuptools", "wheel"}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def modules() -> dict[str, set[str]]:
    """Top-level modules by distribution."""
    found: dict[str, set[str]] = {}
    for module, distributions in metadata.packages_distributions().items():
        for distribution in distributions:
            found.setdefault(normal(distribution), set()).add(module)
    return found


def closure(requirements: list[str]) -> set[str]:
    """The distributions that an installation of these brings."""
    found: set[str] = set()
    open_ = [Requirement(line) for line in requirements]
    while open_:
        requirement = open_.pop()
        name = normal(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        open_ += [Requirement(line) for line in metadata.requires(name) or []]
    return found


def imported() -> set[str]:
    """Top-level modules that the packages import, wherever in a file."""
    found: set[str] = set()
    for path in (p for package in PACKAGES for p in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
    return found - set(PACKAGES) - sys.stdlib_module_names


def test_every_dependency_is_imported_or_says_why_it_is_there() -> None:
    used, known = imported(), {"ray": {"ray"}, **modules()}  # which is not always installed
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    for requirement in BASE + PIPELINE + EXTRAS:
        reason = any(f'"{requirement}",  # ' in line for line in lines)
        assert reason or known[normal(Requirement(requirement).name)] & used, f"nobody imports {requirement}"


def test_everything_imported_is_asked_for() -> None:
    asked = {normal(Requirement(line).name) for line in BASE + PIPELINE + EXTRAS}
    found = {"ray": ["ray"], **metadata.packages_distributions()}
    missing = {name for name in imported() if not {normal(d) for d in found[name]} & asked}
    assert missing == set(COME_WITH)


BLOCKER = """
import sys
from pathlib import Path
hidden, watched, seen = {hidden!r}, {watched!r}, {seen!r}
class Base:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        if name in hidden:
            return None
        if name in watched:
            (Path(seen) / name).touch()
        return self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [Base(finder) for finder in sys.meta_path]
"""


@pytest.fixture
def seen(tmp_path: Path) -> Path:
    """Leaves only the base dependencies to every process with ``tmp_path`` on its path, which sitecustomize reaches.

    The folder returned then holds a file named after each of them that was imported.
    """
    known, allowed = modules(), closure(BASE) | INSTALLER
    hidden = {m for name, ms in known.items() if name not in allowed and not name.startswith("winnow") for m in ms}
    hidden -= {m for name in allowed for m in known.get(name, ())}
    watched = {min(known[normal(Requirement(line).name)], key=len) for line in BASE}
    folder = tmp_path / "seen"
    folder.mkdir()
    blocker = BLOCKER.format(hidden=hidden, watched=watched, seen=str(folder))
    (tmp_path / "sitecustomize.py").write_text(blocker)
    for name, there in (("torch", False), ("rich", False), ("httpx", False), ("numpy", True)):
        check = [sys.executable, "-c", f"import {name}"]
        done = subprocess.run(check, env={**os.environ, "PYTHONPATH": path(tmp_path)}, capture_output=True, check=False)
        assert (done.returncode == 0) is there, (name, done.stderr)
    for left in folder.iterdir():
        left.unlink()
    return folder


def path(folder: Path) -> str:
    return f"{folder}{os.pathsep}{ROOT}"


LAUNCHERS = {
    "python -m serving": [sys.executable, "-m", "serving"],
    "winnow serve": [sys.executable, "-m", "flows.commands.cli", "serve", "--port", "0"],
}


@pytest.mark.parametrize("command", LAUNCHERS)
def test_the_endpoint_runs_on_base_dependencies_and_needs_each(
    store: Store, tmp_path: Path, seen: Path, command: str
) -> None:
    """In every process it starts."""
    variant = publish(store, tmp_path / "v", digits(tmp_path / "v"))
    ledger = Ledger(store)
    ledger.commit(ledger.begin("digits", 1, variant.digest, expected_champion_seq=0))
    with endpoint(tmp_path / "home", launcher=LAUNCHERS[command], PYTHONPATH=path(tmp_path)) as running:
        assert running.admin("GET", "/admin/models").json()["grpc"] is None
        image = {"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [8] * 64}
        answer = running.infer("digits", {"inputs": [image]})
        assert answer.status_code == 200 and {o["name"] for o in answer.json()["outputs"]} >= {"label"}
        assert running.terminate() == 0
    used = {distribution for file in seen.iterdir() for distribution in metadata.packages_distributions()[file.name]}
    needed = {normal(Requirement(line).name) for line in BASE}
    assert {normal(d) for d in used} == needed - (set() if command == "winnow serve" else {"click"})


JWT = {"WINNOW_JWT_KEYS": "keys.json", "WINNOW_JWT_ISSUER": "i", "WINNOW_JWT_AUDIENCE": "a"}

OTEL = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


@pytest.mark.parametrize(("extra", "asked"), [("grpc", {"WINNOW_GRPC_PORT": "0"}), ("jwt", JWT), ("otel", OTEL)])
def test_an_extra_is_asked_for_and_missing(tmp_path: Path, seen: Path, extra: str, asked: dict[str, str]) -> None:
    ports = {"WINNOW_ENDPOINT_PORT": "0", "WINNOW_ADMIN_PORT": "0"}
    done = subprocess.run(
        LAUNCHERS["python -m serving"],
        env={**os.environ, "PYTHONPATH": path(tmp_path), "WINNOW_HOME": str(tmp_path), **ports, **asked},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 2
    assert f"pip install 'winnow-mlops[{extra}]'" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["status", "run", "schema"])
def test_other_commands_say_that_they_need_more(tmp_path: Path, seen: Path, command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flows.commands.cli", command],
        env={**os.environ, "PYTHONPATH": path(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "winnow-mlops[pipeline]" in done.stderr and "Traceback" not in done.stderr
