"""The endpoint without engine processes, and a front that brings nothing of a model where there are some."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
from endpoint_process import ASK, endpoint
from onnx_models import digits, hungry, numbered, publish
from test_serving_endpoint import IMAGE, start

from model_registry.store import Store


def test_without_isolation_models_run_in_the_front_and_all_else_is_as_ever(store: Store, tmp_path: Path) -> None:
    one, two = numbered(store, tmp_path, 1), numbered(store, tmp_path, 2)
    classes = publish(store, tmp_path / "digits", digits(tmp_path / "digits"))
    with endpoint(tmp_path / "home", WINNOW_ENDPOINT_ISOLATION="none") as running:
        running.deploy("m", "1", one.digest)
        running.deploy("digits", "1", classes.digest)
        assert running.infer("m", ASK).json()["outputs"][0]["data"] == [1.0, 1.0]
        running.deploy("m", "2", two.digest)
        assert running.infer("m", ASK).json()["outputs"][0]["data"] == [2.0, 2.0]
        assert running.infer("m", ASK, "1").json()["outputs"][0]["data"] == [1.0, 1.0]
        assert running.infer("digits", {"inputs": [IMAGE]}).json()["outputs"][1]["name"] == "label"
        assert running.infer("digits", {"inputs": [{**IMAGE, "data": ["x"] * 64}]}).status_code == 400
        many = {**IMAGE, "shape": [8000, 1, 8, 8], "data": [8] * 64 * 8000}
        assert running.infer("digits", {"inputs": [many]}).json()["outputs"][0]["shape"] == [8000, 10]
        assert not psutil.Process(running.process.pid).children(recursive=True)
        assert running.admin("DELETE", "/admin/models/m/versions/1").status_code == 200
        assert running.infer("m", ASK, "1").status_code == 404
        (stats,) = running.get("/v2/models/digits/stats").json()["model_stats"]
        assert stats["inference_count"] == 8001
        assert running.terminate() == 0
        assert not any("Traceback" in line for line in running.log)


def test_what_cannot_be_loaded_takes_nothing_with_it(store: Store, tmp_path: Path) -> None:
    good = numbered(store, tmp_path, 1)
    bad = publish(store, tmp_path / "hungry", hungry(tmp_path / "hungry"))
    with endpoint(tmp_path / "home", WINNOW_ENDPOINT_ISOLATION="none") as running:
        running.deploy("m", "1", good.digest)
        refused = running.admin("PUT", "/admin/models/m/versions/2", {"digest": bad.digest})
        assert refused.status_code >= 400 and "while it is loaded" in refused.json()["error"]
        assert running.infer("m", ASK).json()["outputs"][0]["data"] == [1.0, 1.0]
        assert not psutil.Process(running.process.pid).children(recursive=True)


def test_an_isolation_that_is_not_there_is_refused() -> None:
    done = start(WINNOW_ENDPOINT_ISOLATION="some")
    assert (done.returncode, "set it to process" in done.stderr) == (2, True)


def test_the_front_brings_nothing_of_a_model() -> None:
    """What it takes in memory and to start, and what could go wrong in it."""
    code = "import sys, serving.endpoint; print(sorted({'numpy', 'onnxruntime', 'boto3'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
