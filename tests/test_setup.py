"""What `make setup` does: the lock by uv under pip's settings, and by pip where uv does not work."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sysconfig
import venv
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.slow  # environments and processes are made for real

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / ".ci" / "install_locked.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install_locked", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_uv_gets_pip_s_settings(script: ModuleType) -> None:
    listed = """\
:env:.cert='/etc/own.pem'
:env:.find-links='/wheels /more'
global.cert='/etc/other.pem'
global.extra-index-url='https://one.example/simple\\nhttps://two.example/simple'
global.index-url='https://me:secret@mirror.example/simple'
global.timeout='60'
install.find-links='/ignored'
install.no-index='false'
list.format='columns'
"""
    assert script.uv_settings(listed) == {
        "SSL_CERT_FILE": "/etc/own.pem",
        "UV_DEFAULT_INDEX": "https://me:secret@mirror.example/simple",
        "UV_FIND_LINKS": "/wheels,/more",
        "UV_HTTP_TIMEOUT": "60",
        "UV_INDEX": "https://one.example/simple https://two.example/simple",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }


def test_the_lock_names_uv_and_one_torch() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert [line.partition("==")[0] for line in lines if line.startswith(("uv==", "torch=="))] == ["torch", "uv"]


@pytest.mark.parametrize("installer", ["uv", "pip"])
def test_pip_goes_on_where_uv_does_not_work(tmp_path: Path, installer: str) -> None:
    (tmp_path / "requirements.lock").write_text("torch==99\nuv==99\n")  # torch would fail, if it were asked for
    (tmp_path / "trial_house.py").write_text("")
    (tmp_path / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "trial-house"\nversion = "1"\n[tool.setuptools]\npy-modules = ["trial_house"]\n'
    )
    if installer == "pip":
        (tmp_path / "requirements.lock").write_text("torch==99\n")
    venv.create(tmp_path / ".venv", with_pip=True)
    python = tmp_path / ".venv" / "bin" / "python"
    offline = {**os.environ, "PIP_NO_INDEX": "1", "PYTHONPATH": sysconfig.get_path("purelib")}  # setuptools is there
    done = subprocess.run(
        [python, SCRIPT, installer], cwd=tmp_path, env=offline, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert ("pip goes on" in done.stdout) is (installer == "uv")
    found = subprocess.run(
        [python, "-c", "import trial_house; print(trial_house.__file__)"], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == str(tmp_path / "trial_house.py")


def test_what_cannot_be_installed_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "requirements.lock").write_text("no-such-package==1\n")
    venv.create(tmp_path / ".venv", with_pip=True)
    done = subprocess.run(
        [tmp_path / ".venv" / "bin" / "python", SCRIPT, "pip"],
        cwd=tmp_path,
        env={**os.environ, "PIP_NO_INDEX": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "no-such-package" in done.stderr and "Traceback" not in done.stderr
