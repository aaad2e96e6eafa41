"""Optimised graphs kept for the next start: the same answers, never trusted unseen, never needed."""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from endpoint_process import endpoint
from onnx import helper
from onnx_models import constant, digits, publish, save

from model_registry.manifest import hash_bytes
from model_registry.store import Store
from model_registry.variant import RuntimeSpec, TensorSpec, Variant
from serving import optimized_graph
from serving.engine import Engine
from serving.engine_client import EngineClient
from serving.optimized_graph import OptimizedGraphs, worth_keeping
from serving.tensors import Array

X = np.random.default_rng(7).normal(size=(3, 4, 8, 8)).astype(np.float32)


def deep(folder: Path, layers: int = 24, *, runtime: RuntimeSpec | None = None, seed: int = 0) -> Variant:
    """A CNN of so many Conv, Relu and Mul: ONNX Runtime fuses them and changes their layout."""
    rng = np.random.default_rng(seed)
    weights, nodes, last = [constant("half", np.float32(0.5))], [], "x"
    for i in range(layers):
        weights.append(constant(f"w{i}", (rng.normal(size=(4, 4, 3, 3)) / 4).astype(np.float32)))
        nodes += [
            helper.make_node("Conv", [last, f"w{i}"], [f"c{i}"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"c{i}"], [f"r{i}"]),
            helper.make_node("Mul", [f"r{i}", "half"], ["y" if i == layers - 1 else f"m{i}"]),
        ]
        last = f"m{i}"
    x, y = (TensorSpec(name=name, datatype="FP32", shape=(-1, 4, 8, 8)) for name in ("x", "y"))
    return save(folder, nodes, [x], [y], weights, runtime=runtime, name="deep")


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes of each session made here, whether from the variant's own file or an optimised graph."""
    made: list[str] = []
    real = onnxruntime.InferenceSession

    def session(data: bytes, options: Any, **more: Any) -> Any:
        disabled = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        made.append("optimised" if options.graph_optimization_level == disabled else "own file")
        return real(data, options, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    return made


def kept(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_the_second_start_takes_the_optimised_graph_and_answers_the_same(tmp_path: Path, sources: list[str]) -> None:
    variant, root = deep(tmp_path / "files"), tmp_path / "optimized"
    wanted = Engine(tmp_path / "files", variant).run({"x": X})["y"]
    first = Engine(tmp_path / "files", variant, graphs=OptimizedGraphs(root))
    (graph, record) = kept(root)
    assert graph.endswith("/model.onnx") and record.endswith("/record.json")
    assert root.stat().st_mode & 0o777 == 0o700
    said = json.loads((root / record).read_text())
    assert (said["variant"], said["onnxruntime"]) == (variant.digest, onnxruntime.__version__)
    second = Engine(tmp_path / "files", variant, graphs=OptimizedGraphs(root))
    assert sources == ["own file", "own file", "optimised"]
    for engine in (first, second):
        np.testing.assert_array_equal(engine.run({"x": X})["y"], wanted)
    assert second.inputs == first.inputs and second.outputs == first.outputs


def test_another_runtime_machine_or_version_has_a_graph_of_its_own(
    tmp_path: Path, sources: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "optimized"

    def start(runtime: RuntimeSpec | None = None, seed: int = 0) -> None:
        variant = deep(tmp_path / "files", runtime=runtime, seed=seed)
        Engine(tmp_path / "files", variant, graphs=OptimizedGraphs(root))

    start()
    start(RuntimeSpec(disabled_optimizers=("NchwcTransformer",)))
    start(seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(optimized_graph, "cpu_class", lambda: "sparc/vis")
        start()
    with monkeypatch.context() as patch:
        patch.setattr(onnxruntime, "__version__", "0.1")
        start()
    assert sources == ["own file"] * 5 and len(list(root.iterdir())) == 5
    start()
    start(seed=1)
    assert sources[5:] == ["optimised"] * 2


def _other_graph(folder: Path) -> None:
    """A sound graph of another model, with its true hash, in the place of this one."""
    elsewhere = folder.parent.parent / "elsewhere"
    Engine(elsewhere / "files", deep(elsewhere / "files", seed=9), graphs=OptimizedGraphs(elsewhere / "optimized"))
    (other,) = (elsewhere / "optimized").iterdir()
    for name in ("model.onnx", "record.json"):
        (folder / name).write_bytes((other / name).read_bytes())


def _same_hash_no_model(folder: Path) -> None:
    """Bytes that ONNX Runtime does not load, truly recorded."""
    record = json.loads((folder / "record.json").read_text())
    data = b"\x3a\x00"
    (folder / "model.onnx").write_bytes(data)
    record["file"] |= {"sha256": hash_bytes(data), "size": len(data)}
    (folder / "record.json").write_text(json.dumps(record))


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _linked(folder: Path) -> None:
    (folder / "model.onnx").rename(folder.parent.parent / "moved.onnx")
    (folder / "model.onnx").symlink_to(folder.parent.parent / "moved.onnx")


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "a bit": lambda f: _flip(f / "model.onnx"),
    "the end": lambda f: (f / "model.onnx").write_bytes((f / "model.onnx").read_bytes()[:-20]),
    "no file": lambda f: (f / "model.onnx").unlink(),
    "no record": lambda f: (f / "record.json").unlink(),
    "record": lambda f: (f / "record.json").write_text("{"),
    "another's": _other_graph,
    "no model": _same_hash_no_model,
    "a link": _linked,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_graph_is_thrown_away_and_made_anew(tmp_path: Path, damage: str, sources: list[str]) -> None:
    variant, root = deep(tmp_path / "files"), tmp_path / "optimized"
    wanted = Engine(tmp_path / "files", variant, graphs=OptimizedGraphs(root)).run({"x": X})["y"]
    (folder,) = root.iterdir()
    DAMAGES[damage](folder)
    again = Engine(tmp_path / "files", variant, graphs=OptimizedGraphs(root))
    np.testing.assert_array_equal(again.run({"x": X})["y"], wanted)
    Engine(tmp_path / "files", variant, graphs=OptimizedGraphs(root))
    assert sources[-2:] == ["own file", "optimised"]
    assert [p.name for p in root.iterdir()] == [folder.name]


def test_a_folder_that_others_may_write_is_neither_read_nor_written(tmp_path: Path, sources: list[str]) -> None:
    variant, root = deep(tmp_path / "files"), tmp_path / "optimized"
    Engine(tmp_path / "files", variant, graphs=OptimizedGraphs(root))
    root.chmod(0o777)
    Engine(tmp_path / "files", variant, graphs=OptimizedGraphs(root))
    assert sources == ["own file"] * 2 and len(list(root.iterdir())) == 1


def test_a_full_disk_costs_the_graph_and_nothing_else(tmp_path: Path) -> None:
    """The limit on file sizes stands for the disk: writes fail in the middle, in ONNX Runtime's own code."""
    variant, root = deep(tmp_path / "files"), tmp_path / "optimized"
    (tmp_path / "variant.json").write_bytes(variant.to_json())
    np.save(tmp_path / "x.npy", X)
    code = """
import resource, sys
from pathlib import Path
import numpy as np
from model_registry.variant import Variant
from serving.engine import Engine
from serving.optimized_graph import OptimizedGraphs
folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
variant = Variant.model_validate_json((folder / "variant.json").read_bytes())
engine = Engine(folder / "files", variant, graphs=OptimizedGraphs(folder / "optimized"))
print(engine.run({"x": np.load(folder / "x.npy", allow_pickle=False)})["y"].tobytes().hex())
"""
    wanted = Engine(tmp_path / "files", variant).run({"x": X})["y"].tobytes().hex()
    for size in (4096, 1):
        command = [sys.executable, "-c", code, str(tmp_path), str(size)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == wanted
        assert list(root.iterdir()) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    root.rmdir()
    root.write_text("a file in the way")
    Engine(tmp_path / "files", variant, graphs=OptimizedGraphs(root))


def test_two_processes_at_once_leave_one_graph(tmp_path: Path, sources: list[str]) -> None:
    variant, root = deep(tmp_path / "files"), tmp_path / "optimized"
    wanted = Engine(tmp_path / "files", variant).run({"x": X})["y"]

    async def start() -> None:
        clients = await asyncio.gather(
            *(EngineClient.start(tmp_path / "files", variant, graphs=root) for _ in range(2))
        )
        for client in clients:
            np.testing.assert_array_equal((await client.infer({"x": X}, ["y"]))["y"], wanted)
            await client.stop()

    asyncio.run(start())
    assert len(kept(root)) == 2 and len(list(root.iterdir())) == 1
    Engine(tmp_path / "files", variant, graphs=OptimizedGraphs(root))
    assert sources[-1] == "optimised"


def test_small_graphs_and_heavy_ones_are_not_kept(tmp_path: Path) -> None:
    assert not worth_keeping(nodes=5, size=4_000)
    assert worth_keeping(nodes=600, size=34 << 20)
    assert not worth_keeping(nodes=400, size=97 << 20)
    Engine(tmp_path / "files", digits(tmp_path / "files"), graphs=OptimizedGraphs(tmp_path / "optimized"))
    assert not (tmp_path / "optimized").exists()


def test_int8_answers_the_same_from_its_optimised_graph(tmp_path: Path, sources: list[str]) -> None:
    rng = np.random.default_rng(0)
    weights = [constant("s", np.float32(0.05)), constant("z", np.uint8(128)), constant("zw", np.int8(0))]
    nodes, last = [], "x"

    def pair(source: str, name: str) -> str:
        nodes.append(helper.make_node("QuantizeLinear", [source, "s", "z"], [f"{name}q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}q", "s", "z"], [f"{name}d"]))
        return f"{name}d"

    for i in range(12):
        weights.append(constant(f"w{i}", rng.integers(-127, 127, (4, 4, 3, 3), dtype=np.int8)))
        nodes.append(helper.make_node("DequantizeLinear", [f"w{i}", "s", "zw"], [f"f{i}"]))
        nodes.append(helper.make_node("Conv", [pair(last, f"a{i}"), f"f{i}"], [f"c{i}"], pads=[1, 1, 1, 1]))
        last = f"c{i}"
    end = pair(last, "end")
    nodes.append(helper.make_node("Identity", [end], ["y"]))
    x, y = (TensorSpec(name=name, datatype="FP32", shape=(-1, 4, 8, 8)) for name in ("x", "y"))
    variant = save(tmp_path / "files", nodes, [x], [y], weights)
    root = tmp_path / "optimized"
    answers: list[Array] = [
        Engine(tmp_path / "files", variant, graphs=OptimizedGraphs(root)).run({"x": X})["y"] for _ in range(2)
    ]
    assert sources == ["own file", "optimised"]
    np.testing.assert_array_equal(answers[0], answers[1])
    assert len(np.unique(answers[0])) > 10


@pytest.mark.timeout(60)
def test_an_endpoint_keeps_it_beside_the_variant(store: Store, tmp_path: Path) -> None:
    variant = publish(store, tmp_path / "m", deep(tmp_path / "m"))
    wanted = Engine(tmp_path / "m", variant).run({"x": X[:1]})["y"].ravel().tolist()
    body = {"inputs": [{"name": "x", "shape": [1, 4, 8, 8], "datatype": "FP32", "data": X[:1].ravel().tolist()}]}
    folder = tmp_path / "home" / "endpoint-cache" / variant.digest / "optimized"
    with endpoint(tmp_path / "home") as running:
        for version in ("1", "2"):
            running.deploy("m", version, variant.digest)
            assert running.infer("m", body).json()["outputs"][0]["data"] == pytest.approx(wanted, abs=1e-6)
            assert len(kept(folder)) == 2
        (graph,) = folder.glob("*/model.onnx")
        graph.write_bytes(b"damaged")
        running.deploy("m", "3", variant.digest)
        assert running.infer("m", body).json()["outputs"][0]["data"] == pytest.approx(wanted, abs=1e-6)
        running.wait_log("is damaged and made anew")
        assert graph.stat().st_size > 1000
