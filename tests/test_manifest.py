"""Manifests: hashes, canonical JSON, and a mismatch told as a diff."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from model_registry.manifest import (
    FileEntry,
    ManifestMismatch,
    canonical_json,
    describe_folder,
    hash_bytes,
    hash_file,
    verify_folder,
)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def folder(tmp_path: Path) -> Path:
    (tmp_path / "assets").mkdir()
    (tmp_path / "model.onnx").write_bytes(b"model")
    (tmp_path / "assets" / "labels.json").write_bytes(b"[]")
    return tmp_path


@given(VALUES)
def test_canonical_json_is_json_and_ignores_the_order_of_keys(value: object) -> None:
    text = canonical_json(value)
    assert json.loads(text) == value
    if isinstance(value, dict):
        assert canonical_json(dict(reversed(value.items()))) == text


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_canonical_json_refuses_what_is_no_json_number(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"x": value})
    with pytest.raises(TypeError):
        canonical_json({"x": {1, 2}})


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_a_file_hashes_as_its_bytes(tmp_path: Path, size: int) -> None:
    data = b"x" * size
    (tmp_path / "f").write_bytes(data)
    assert hash_file(tmp_path / "f") == hash_bytes(data)


@pytest.mark.parametrize("path", ["/etc/passwd", "../up", "a/../b", "a//b", "./a", "a/", "", ".", "a\\b", "a\0b"])
def test_paths_that_lead_elsewhere_are_refused(path: str) -> None:
    with pytest.raises(ValidationError, match="file path"):
        FileEntry(path=path, sha256="0" * 64, size=0)


def test_a_folder_is_described_by_its_files_in_order(tmp_path: Path) -> None:
    entries = describe_folder(folder(tmp_path))
    assert [(e.path, e.size) for e in entries] == [("assets/labels.json", 2), ("model.onnx", 5)]
    assert entries[1].sha256 == hash_bytes(b"model")
    verify_folder(tmp_path, entries)


def test_a_mismatch_names_what_is_extra_missing_and_changed(tmp_path: Path) -> None:
    entries = describe_folder(folder(tmp_path))
    (tmp_path / "model.onnx").write_bytes(b"MODEL")  # the same size
    (tmp_path / "assets" / "labels.json").unlink()
    (tmp_path / "more").write_bytes(b"")
    with pytest.raises(ManifestMismatch) as caught:
        verify_folder(tmp_path, entries)
    error = caught.value
    assert (error.extra, error.missing, error.changed) == (["more"], ["assets/labels.json"], ["model.onnx"])
    assert str(tmp_path) in str(error) and "fetch it again" in str(error)


def test_a_link_is_never_the_file(tmp_path: Path) -> None:
    entries = describe_folder(folder(tmp_path))
    (tmp_path / "model.onnx").rename(tmp_path.parent / "elsewhere")
    (tmp_path / "model.onnx").symlink_to(tmp_path.parent / "elsewhere")
    with pytest.raises(ManifestMismatch, match=r"changed \['model.onnx'\]"):
        verify_folder(tmp_path, entries)
