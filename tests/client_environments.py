"""Environments with clients that nobody here wrote, whose dependencies are not ours; they outlive the tests."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def client_python(request: pytest.FixtureRequest, *packages: str) -> str:
    """The Python of an environment with these packages, made where it is not there yet.

    Skips the test where they cannot be installed, for the index is away; fails it where CI is set, which has one.
    """
    key = hashlib.sha256("\n".join([sys.version, *packages]).encode()).hexdigest()[:16]
    cache = getattr(request.config, "cache", None)  # which pytest can be told to do without
    cached = cache.mkdir("clients") if cache else request.getfixturevalue("tmp_path_factory").mktemp("clients")
    home: Path = cached / key
    complete, python = home / "complete", str(home / "bin" / "python")
    with (cached / f"{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other workers, and other runs
        if not complete.exists():
            shutil.rmtree(home, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
            pip = [sys.executable, "-m", "pip", "--python", python, "--retries", "1", "--disable-pip-version-check"]
            done = subprocess.run(
                [*pip, "install", "--quiet", "--no-compile", *packages],
                stderr=subprocess.PIPE,
                text=True,
                timeout=500,
                check=False,
            )
            if done.returncode:
                why = f"{', '.join(packages)} cannot be installed: {done.stderr[-500:]}"
                pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
            complete.touch()
    return python
