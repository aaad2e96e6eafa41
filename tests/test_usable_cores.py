"""How many cores the endpoint counts on, under the limits of containers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from serving.engines.usable_cores import usable_cores


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


@pytest.mark.parametrize(
    ("limits", "cores"),
    [
        ({}, 8),
        ({"pod": "max 100000"}, 8),
        ({"pod": "200000 100000"}, 2),
        ({"pod": "150000 100000"}, 1),
        ({"pod": "20000 100000"}, 1),
        ({"": "max 100000", "pod": "400000 100000", "pod/c": "max 100000"}, 4),
        ({"pod": "100000 100000", "pod/c": "300000 100000"}, 1),
        ({"pod/c": "1600000 100000"}, 8),
        ({"other": "100000 100000"}, 8),
    ],
)
def test_the_tightest_limit_holds(tmp_path: Path, limits: dict[str, str], cores: int) -> None:
    for name, text in limits.items():
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "cpu.max").write_text(text + "\n")
    own = tmp_path / "own"
    own.write_text("0::/pod/c\n")
    assert usable_cores(tmp_path, own) == cores


@pytest.mark.parametrize("text", [None, "", "11:cpu:/docker/1\n"])
def test_without_control_groups_of_version_2_all_cores_count(tmp_path: Path, text: str | None) -> None:
    own = tmp_path / "own"
    if text is not None:
        own.write_text(text)
    assert usable_cores(tmp_path, own) == 8
