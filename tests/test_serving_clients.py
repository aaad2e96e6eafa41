"""Clients that nobody here wrote, as they come: what they ask the endpoint, and what they get."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from conftest import Server
from endpoint_process import Endpoint, endpoint
from onnx_models import digits, publish

from model_registry.store import Store
from serving.engine import Engine

pytestmark = pytest.mark.slow
SCRIPTS = Path(__file__).parent
ROWS = np.arange(2 * 64, dtype=np.float32).reshape(2, 1, 8, 8) % 17


@pytest.fixture(scope="module")
def served(s3: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Endpoint, Engine]]:
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**s3.environment, "WINNOW_STORE": "s3://clients"}.items():
            patch.setenv(name, value)
        store = Store.from_environment()
        store.prepare()
        variant = publish(store, folder / "digits", digits(folder / "digits"))
        with endpoint(folder / "home") as running:
            running.deploy("digits", "3", variant.digest)
            yield running, Engine(folder / "digits", variant)


@pytest.fixture(scope="module")
def tritons(served: tuple[Endpoint, Engine], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What tritonclient was answered, by question; in an environment of its own, for its dependencies are not ours."""
    home = tmp_path_factory.mktemp("tritonclient")
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    python = str(home / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "tritonclient[http]==2.73.0"], check=True)
    where = urlsplit(served[0].url).netloc
    command = [python, str(SCRIPTS / "triton_script.py"), where, "digits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    "question",
    [
        "json",
        "binary",
        "binary in, json out",
        "json in, binary out",
        "as the client does by itself",
        "everything",
        "gzip",
        "deflate",
        "in the background",
        "asyncio",
    ],
)
def test_tritonclient_gets_what_the_engine_answers(
    served: tuple[Endpoint, Engine], tritons: dict[str, Any], question: str
) -> None:
    wanted = served[1].run({"image": ROWS})
    found = tritons[question]
    np.testing.assert_allclose(found["logits"], wanted["logits"], rtol=1e-5)
    assert found["label"] == [label.decode() for label in wanted["label"]]
    assert found["version"] == "3"
    assert found["id"] == ("a7" if question == "everything" else None)


def test_tritonclient_learns_what_there_is(tritons: dict[str, Any]) -> None:
    assert [tritons[name] for name in ("live", "ready", "model ready", "no such model")] == [True, True, True, False]
    assert "binary_tensor_data" in tritons["server"]["extensions"]
    assert tritons["metadata"]["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
    assert tritons["index"] == [{"name": "digits", "version": "3", "state": "READY", "reason": ""}]
    (stats,) = tritons["statistics"]["model_stats"]
    assert stats["inference_count"] >= 2 * 10
    assert stats["inference_stats"]["success"]["count"] >= 10
    assert stats["inference_stats"]["fail"]["count"] == 3
    assert stats["inference_stats"]["compute_infer"]["ns"] > 0


def test_what_is_not_offered_is_refused_by_name(tritons: dict[str, Any]) -> None:
    assert "'priority'" in tritons["a priority"]["error"]
    assert "'sequence_id'" in tritons["a sequence"]["error"]
    assert "NaN or infinity" in tritons["NaN"]["error"]
