"""What users import: all of it is there, importing it takes nothing, and cache keys see through it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import winnow
from flows.spec import parse_spec
from tasks.running.errors import SpecError
from tasks.running.source_hash import closure_hash, public_names, public_place
from tasks.workloads.images import Images


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_name_is_there_and_documented() -> None:
    assert set(dir(winnow)) >= {"run", "compress", "load", "variants", "compare", "promote", "rollback", "Workload"}
    assert public_names() == sorted(winnow.__all__) == sorted(dir(winnow))
    for name in public_names():
        assert (getattr(winnow, name).__doc__ or "").strip(), f"winnow.{name} says nothing about itself"
    with pytest.raises(AttributeError, match=r"no attribute 'compres'; it has .*compress"):
        _ = winnow.compres


def test_importing_it_takes_nothing() -> None:
    heavy = "{'torch', 'prefect', 'mlflow', 'pandas', 'numpy', 'pydantic', 'onnxruntime'}"
    assert run(f"import sys, winnow; print({heavy} & set(sys.modules))") == "set()"
    # A workload in a child process needs metrics and readers, and no flow.
    assert run("import sys, winnow; winnow.Metric; winnow.split_columns; print('prefect' in sys.modules)") == "False"


def test_it_is_typed() -> None:
    assert (Path(str(winnow.__file__)).parent / "py.typed").exists()


def test_a_spec_may_name_a_class_by_the_face() -> None:
    document = {"schema": 1, "model": "m", "workload": "winnow:Images"}
    assert parse_spec(document, "here").workload.path == f"{Images.__module__}:Images"
    assert document["workload"] == "winnow:Images"  # the caller's own document is left as it is
    with pytest.raises(SpecError, match=r"winnow has no class 'Imags'; it has .*Images"):
        parse_spec({**document, "workload": {"path": "winnow:Imags"}}, "here")


@pytest.mark.parametrize(
    ("text", "module"),
    [
        ("from winnow import split_columns\n", "tasks.readers.splitting"),
        ("import winnow\n\ndef f(x):\n    return winnow.split_columns(x)\n", "tasks.readers.splitting"),
        ("import winnow as w\n\nclass A(w.Digits):\n    pass\n", "tasks.workloads.digits"),
        ("from winnow import *\n", "tasks.workloads.vgg"),
    ],
)
def test_a_cache_key_sees_through_the_face(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, module: str
) -> None:
    """A user's module has the source of what it takes from winnow in its hash, and of nothing else."""
    from tasks.running import source_hash

    (tmp_path / "mine.py").write_text(text)
    before = closure_hash("mine", str(tmp_path))
    walked = set(source_hash._walk("mine", str(tmp_path)))
    assert module in walked and "winnow" not in walked
    assert not any(name.startswith("flows") for name in walked)
    (tmp_path / "mine.py").write_text(text.replace("winnow", "winnow ").replace("winnow .", "winnow."))
    assert closure_hash("mine", str(tmp_path)) == before
    place = public_place("split_columns")
    assert place == ("tasks.readers.splitting", "split_columns")
