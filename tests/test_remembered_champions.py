"""What was served last is known at the next start, whatever happens to the file."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serving.remembered_champions import RememberedChampions

DIGESTS = {"1": "a" * 64, "2": "b" * 64}


def serving(**models: str | None) -> Any:
    """A rollout with these models, each with its version that has the traffic."""
    versions = {number: SimpleNamespace(digest=digest) for number, digest in DIGESTS.items()}
    return SimpleNamespace(models={m: SimpleNamespace(serving=v, versions=versions) for m, v in models.items()})


def last(file: Path) -> dict[str, str]:
    found = RememberedChampions(file).last
    return {model: str(found.champion(model)) for model in found.models()}


def test_what_has_the_traffic_is_known_at_the_next_start(tmp_path: Path) -> None:
    file = tmp_path / "served.txt"
    champions = RememberedChampions(file)
    assert last(file) == {} and not file.exists()
    champions.note(serving(m="1", other="2"))
    assert last(file) == {"m": f"m/1@{DIGESTS['1']}", "other": f"other/2@{DIGESTS['2']}"}
    champions.note(serving(m="2", other=None))
    assert last(file) == {"m": f"m/2@{DIGESTS['2']}"}
    assert champions.last.models() == [], "what it was at its own start"
    champions.note(serving(m=None))
    assert last(file) == {}
    assert [path.name for path in tmp_path.iterdir()] == ["served.txt"]


def test_a_start_that_serves_nothing_yet_forgets_nothing(tmp_path: Path) -> None:
    file = tmp_path / "served.txt"
    RememberedChampions(file).note(serving(m="1"))
    again = RememberedChampions(file)
    again.note(serving())
    again.note(serving(m=None))
    assert last(file) == {"m": f"m/1@{DIGESTS['1']}"}


@pytest.mark.parametrize("content", [b"m/1@abc", b"\xff", b"m/1@" + b"a" * 64 + b",m/2@" + b"b" * 64, b"../x/1@2"])
def test_a_file_that_makes_no_sense_is_as_good_as_none(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "served.txt"
    file.write_bytes(content)
    champions = RememberedChampions(file)
    assert champions.last.models() == [] and "is not known" in caplog.text
    champions.note(serving(m="2"))
    assert last(file) == {"m": f"m/2@{DIGESTS['2']}"}


def test_a_disk_that_takes_nothing_is_reported_once_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "missing" / "served.txt"
    champions = RememberedChampions(file)
    for _ in range(3):
        champions.note(serving(m="1"))
    assert len(caplog.records) == 1
    file.parent.mkdir()
    champions.note(serving(m="1"))
    assert last(file) == {"m": f"m/1@{DIGESTS['1']}"}
