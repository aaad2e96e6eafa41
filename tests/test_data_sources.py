"""Fingerprints of what a workload's arguments name."""

from __future__ import annotations

from pathlib import Path

import pytest

from model_registry.store import Store
from tasks.readers.sources import fingerprint, local
from tasks.running.errors import DataReadError


def test_files_and_folders_are_known_by_content(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "1.png").write_text("x")
    arguments = {"source": {"train": "a.csv", "test": ["set", str(tmp_path / "a.csv")]}, "rows": 5, "target": "label"}
    first = fingerprint(arguments, tmp_path)
    assert sorted(first) == ["source.test[0]", "source.test[1]", "source.train"]
    assert first["source.train"] == first["source.test[1]"]
    assert fingerprint(arguments, tmp_path) == first

    (tmp_path / "a.csv").write_text("2")
    second = fingerprint(arguments, tmp_path)
    assert second["source.train"] != first["source.train"] and second["source.test[0]"] == first["source.test[0]"]
    (tmp_path / "set" / "1.png").rename(tmp_path / "set" / "2.png")
    assert fingerprint(arguments, tmp_path)["source.test[0]"] != first["source.test[0]"]


def test_plain_text_is_no_file(tmp_path: Path) -> None:
    assert fingerprint({"target": "label", "empty": "", "odd": "a\0b", "long": "x" * 9000}, tmp_path) == {}


def test_objects_are_known_by_name_and_content(store: Store) -> None:
    store.put("user/set/a", b"1")
    store.put("user/set/b", b"2")
    store.put("user/settings", b"not below the folder")
    arguments = {"one": f"s3://{store.bucket}/user/set/a", "all": f"s3://{store.bucket}/user/set"}
    first = fingerprint(arguments, Path.cwd())
    assert sorted(first) == ["all", "one"]
    store.put("user/settings", b"other")
    assert fingerprint(arguments, Path.cwd()) == first
    store.put("user/set/b", b"3")
    second = fingerprint(arguments, Path.cwd())
    assert second["one"] == first["one"] and second["all"] != first["all"]
    with pytest.raises(DataReadError, match="names no object"):
        fingerprint({"gone": f"s3://{store.bucket}/user/gone"}, Path.cwd())


def test_a_folder_of_objects_is_fetched_whole_and_removed_again(store: Store) -> None:
    for name in ("set/a", "set/deep/b", "settings"):
        store.put(f"user/{name}", name.encode())
    with local(f"s3://{store.bucket}/user/set/") as folder:
        found = {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}
    assert found == {"a": "set/a", "deep/b": "set/deep/b"}
    assert not folder.exists()


class Bucket:
    """A bucket of the user's with such keys; what is fetched from it is noted."""

    def __init__(self, *keys: str) -> None:
        self.keys, self.fetched = keys, list[Path]()

    def list_uri(self, uri: str) -> list[str]:
        return [f"s3://pictures/{key}" for key in self.keys]

    def download(self, uri: str, destination: Path) -> Path:
        self.fetched.append(destination)
        return destination


@pytest.mark.parametrize("key", ["train/../../x", "train/..", "train//x", "train/./x", "train/a\\..\\x", "train/\0"])
def test_a_key_that_is_no_path_below_the_source_is_refused(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    bucket = Bucket("train/cat/1.png", key)
    monkeypatch.setattr(Store, "from_environment", lambda: bucket)
    with pytest.raises(DataReadError, match="1 keys cannot be paths"), local("s3://pictures/train"):
        raise AssertionError("it was read")
    assert bucket.fetched == []


def test_a_source_that_climbs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = Bucket("train/..")
    monkeypatch.setattr(Store, "from_environment", lambda: bucket)
    with pytest.raises(DataReadError, match="cannot be paths"), local("s3://pictures/train/.."):
        raise AssertionError("it was read")
