"""Install requirements.lock, and Winnow itself, into the virtual environment of the Python that runs this.

    .venv/bin/python .ci/install_locked.py [uv|pip]

uv takes a tenth of pip's time, since it does not compile ahead what a run may never import; where uv cannot be
installed or fails, pip does the same. torch is not among it: which of its builds fits this machine is said by pip's
settings, and its CUDA build is several gigabytes.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

LOCK = Path("requirements.lock")
_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
_RANK = {"global": 0, "install": 1, ":env:": 2}
_WINNOW = ("--no-deps", "--no-build-isolation", "-e", ".")


def main(tool: str = "uv") -> None:
    """Install with the tool; raises CalledProcessError where pip itself fails."""
    lines = LOCK.read_text().splitlines()
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / LOCK.name
        wanted.write_text("\n".join(line for line in lines if not line.startswith(("torch==", "uv=="))))
        if tool == "uv":
            try:
                with_uv(next(line for line in lines if line.startswith("uv==")), wanted)
                return
            except subprocess.CalledProcessError as error:
                print(f"uv does not work here (exit code {error.returncode}); pip goes on, in a few minutes")
        install = (*_PIP, "install", "--no-compile")
        subprocess.run((*install, "--no-deps", "-r", wanted), check=True)
        subprocess.run((*install, *_WINNOW), check=True)


def with_uv(uv: str, wanted: Path) -> None:
    """Install uv by pip, and everything else by uv; CalledProcessError where either fails."""
    subprocess.run((*_PIP, "install", "--no-compile", "--no-deps", uv), check=True)
    listed = subprocess.run((*_PIP, "config", "list"), capture_output=True, text=True, check=True).stdout
    environment = {**uv_settings(listed), **os.environ, "VIRTUAL_ENV": sys.prefix}
    install = (sys.executable, "-m", "uv", "--quiet", "pip", "install")
    subprocess.run((*install, "--no-deps", "-r", wanted), check=True, env=environment)
    subprocess.run((*install, *_WINNOW), check=True, env=environment)


def uv_settings(listed: str) -> dict[str, str]:
    """pip's settings, as ``pip config list`` writes them, in uv's variables: uv reads none of pip's itself."""
    ranked = []
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        if section in _RANK:
            ranked.append((_RANK[section], name.replace("_", "-"), str(ast.literal_eval(value))))
    found = {name: value for _, name, value in sorted(ranked)}
    return named(
        {
            "UV_DEFAULT_INDEX": found.get("index-url"),
            "UV_INDEX": " ".join(found.get("extra-index-url", "").split()),
            "UV_FIND_LINKS": ",".join(found.get("find-links", "").split()),
            "UV_INSECURE_HOST": " ".join(found.get("trusted-host", "").split()),
            "UV_NO_INDEX": "1" if found.get("no-index", "").lower() in {"1", "true", "yes", "on"} else None,
            "UV_HTTP_TIMEOUT": found.get("timeout") or found.get("default-timeout"),
            "UV_INDEX_STRATEGY": "unsafe-best-match",  # all indexes count alike, as they do for pip
            "SSL_CERT_FILE": found.get("cert"),
            "ALL_PROXY": found.get("proxy"),
        }
    )


def named(settings: Mapping[str, str | None]) -> dict[str, str]:
    """Those that are set."""
    return {name: value for name, value in settings.items() if value}


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except subprocess.CalledProcessError as error:  # pip has said why
        sys.exit(error.returncode)
