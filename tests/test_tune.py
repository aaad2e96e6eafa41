"""Tuning: options are kept only where they are faster and answer the same; what is chosen is what is served."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import pytest
from measured_models import linear, make_data, make_job, make_variant
from onnx import helper
from onnx_models import constant, digits, save

from model_registry.store import Store
from model_registry.variant import RuntimeSpec, TensorSpec, Variant
from serving import tuning, tuning_bench
from serving.engine import Engine
from serving.probe_latency import Comparison, ModelAlone, Timing, compare
from serving.tensors import Array
from serving.tuning_request import Option, TuningRequest, TuningResult, tuned_runtime
from tasks.errors import ChildFailed
from tasks.onnx_graph import signature
from tasks.tune import TuneSpec, tune, tune_child
from tasks.tune.folded_graph import fold, quantized
from tasks.tune.session_options import session_options

EVERYTHING = ("threads", "spinning", "arena", "levels", "layouts", "fusions", "folded")


# -- which options ----------------------------------------------------------------------------------------------
def test_options_are_changes_that_the_runtime_does_not_have() -> None:
    one = session_options(RuntimeSpec(), EVERYTHING, threads=1)
    assert "no arena" in one and "level basic" in one and not any("thread" in name for name in one)
    two = session_options(RuntimeSpec(intra_op_threads=2), ("threads", "spinning"), threads=2)
    assert two == {
        "1 thread": {"intra_op_threads": 1},
        "2 threads that spin": {"intra_op_threads": 2, "spinning": True},
    }
    bare = RuntimeSpec(arena=False, graph_optimization="basic", disabled_optimizers=("NchwcTransformer",))
    left = session_options(bare, EVERYTHING, threads=1)
    assert not {"no arena", "level basic", "no NCHWc layout"} & left.keys() and "no NHWC layout" in left
    assert session_options(RuntimeSpec(), ("folded",), threads=4) == {}
    for change in session_options(RuntimeSpec(), EVERYTHING, threads=2).values():
        assert tuned_runtime(RuntimeSpec(), [change]) != RuntimeSpec()


def test_changes_add_up() -> None:
    changes: list[dict[str, Any]] = [
        {"disabled_optimizers": ("B",)},
        {"arena": False},
        {"disabled_optimizers": ("A", "B")},
    ]
    assert tuned_runtime(RuntimeSpec(disabled_optimizers=("C",), spinning=True), changes) == RuntimeSpec(
        arena=False, spinning=True, disabled_optimizers=("A", "B", "C")
    )


# -- the engine does what the runtime says ----------------------------------------------------------------------
def cnn(folder: Path, runtime: RuntimeSpec | None = None) -> Variant:
    rng = np.random.default_rng(0)
    weights = [constant(f"w{i}", (rng.normal(size=(16, 16, 3, 3)) / 9).astype(np.float32)) for i in range(3)]
    nodes, last = [], "x"
    for i in range(3):
        nodes.append(helper.make_node("Conv", [last, f"w{i}"], [f"c{i}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{i}"], ["y" if i == 2 else f"r{i}"]))
        last = f"r{i}"
    x, y = (TensorSpec(name=name, datatype="FP32", shape=(-1, 16, 8, 8)) for name in ("x", "y"))
    return save(folder, nodes, [x], [y], weights, runtime=runtime)


def test_the_engine_gives_the_runtime_to_onnx_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, list[str]]] = []
    real = onnxruntime.InferenceSession

    def session(data: bytes, options: Any, *, disabled_optimizers: list[str], **more: Any) -> Any:
        seen.append((options, disabled_optimizers))
        return real(data, options, disabled_optimizers=disabled_optimizers, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    Engine(tmp_path, cnn(tmp_path))
    Engine(tmp_path, cnn(tmp_path, RuntimeSpec(arena=False, disabled_optimizers=("NchwcTransformer",))))
    assert [(o.enable_cpu_mem_arena, names) for o, names in seen] == [(True, []), (False, ["NchwcTransformer"])]


# -- what is kept -----------------------------------------------------------------------------------------------
@dataclass
class Clock:
    """In place of time: each engine's latency is said by its variant; the two equal engines differ as ``machine``."""

    cost: Callable[[Variant], float]
    machine: float = 1.0
    calls: int = 0

    def compare(self, variant: ModelAlone, baseline: ModelAlone, requests: list[Any], **more: Any) -> Comparison:
        found = compare(_Quick(), _Quick(), requests, **(more | {"rounds": 2, "seconds": 0.0, "warm_up_seconds": 0.0}))
        self.calls += 1
        ratio = self.cost(baseline.variant) / self.cost(variant.variant)
        if self.calls == 1:
            ratio = self.machine
        assert found.speedup is not None
        interval = (ratio * 0.98, ratio * 1.02)
        verdict = "faster" if interval[0] > 1.01 else "slower" if interval[1] < 0.99 else "not distinguishable"
        times = {"p50_ms": self.cost(baseline.variant)}
        return found.model_copy(
            update={
                "speedup": found.speedup.model_copy(update={"value": ratio, "interval": interval, "verdict": verdict}),
                "variant": Timing.model_validate({**found.variant.model_dump(), "p50_ms": self.cost(variant.variant)}),
                "baseline": Timing.model_validate({**found.baseline.model_dump(), **times}),
            }
        )


class _Quick:
    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        return inputs


OPTIONS = {
    "no arena": Option(name="no arena", runtime={"arena": False}),
    "no NCHWc": Option(name="no NCHWc", runtime={"disabled_optimizers": ["NchwcTransformer"]}),
    "no GELU": Option(name="no GELU", runtime={"disabled_optimizers": ["BiasGeluFusion"]}),
    "2 threads": Option(name="2 threads", runtime={"intra_op_threads": 2}),
    "2 threads that spin": Option(name="2 threads that spin", runtime={"intra_op_threads": 2, "spinning": True}),
}


def tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock, *names: str, **more: Any) -> TuningResult:
    monkeypatch.setattr(tuning_bench, "compare", clock.compare)
    folder = tmp_path / "cnn"
    variant = cnn(folder)
    np.savez(tmp_path / "x.npz", allow_pickle=False, x=np.random.default_rng(1).normal(size=(5, 16, 8, 8)))
    options = tuple(OPTIONS[name] for name in names)
    fields = {"variant": variant, "folder": folder, "options": options, "inputs": tmp_path / "x.npz"} | more
    return tuning.tune(TuningRequest.model_validate(fields))


def by_name(result: TuningResult) -> dict[str, tuple[str, str]]:
    return {t.option: (t.verdict, t.reason) for t in result.trials}


def test_faster_options_add_up_and_the_rest_says_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cost(variant: Variant) -> float:
        runtime = variant.runtime
        cost = 10.0 * (0.5 if runtime.intra_op_threads == 2 else 1.0) * (0.8 if runtime.spinning else 1.0)
        return cost * (1.3 if runtime.disabled_optimizers else 1.0) * (1.0 if runtime.arena else 0.9)

    result = tuned(tmp_path, monkeypatch, Clock(cost), *OPTIONS)
    assert result.kept == ("2 threads that spin", "no arena")
    assert result.runtime == RuntimeSpec(intra_op_threads=2, spinning=True, arena=False)
    assert result.p50_ms == 10.0 and result.tuned_p50_ms == pytest.approx(3.6)
    assert result.confirmed is not None and result.confirmed.verdict == "kept"
    assert result.confirmed.ratio == pytest.approx(10 / 3.6)
    assert by_name(result) == {
        "no arena": ("kept", "faster"),
        "no NCHWc": ("dropped", "slower"),
        "no GELU": ("dropped", "changes nothing in this graph"),
        "2 threads": ("dropped", "does not go with 2 threads that spin"),
        "2 threads that spin": ("kept", "faster"),
    }
    skipped = result.trials[2]
    assert skipped.ratio is None and skipped.interval is None


def test_what_gains_nothing_beside_another_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(lambda v: 10.0 if v.runtime == RuntimeSpec() else 5.0 if not v.runtime.arena else 6.0)
    result = tuned(tmp_path, monkeypatch, clock, "no arena", "2 threads")
    assert result.kept == ("no arena",)
    assert by_name(result)["2 threads"] == ("dropped", "with no arena: not distinguishable")


@pytest.mark.parametrize("machine", [1.25, 0.8])
def test_a_gain_within_what_equal_engines_differ_by_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: float
) -> None:
    clock = Clock(lambda v: 10.0 if v.runtime.arena else 8.2, machine=machine)
    result = tuned(tmp_path, monkeypatch, clock, "no arena")
    assert result.kept == () and result.confirmed is None and result.tuned_p50_ms is None
    assert result.runtime == RuntimeSpec()
    assert "not more than two equal engines differ by (1.27" in by_name(result)["no arena"][1]
    assert result.control[1] == pytest.approx(1 / result.control[0]) and result.control[1] > 1.27


def test_what_is_not_confirmed_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(lambda v: 10.0 if v.runtime.arena or clock.calls > 2 else 8.0)
    result = tuned(tmp_path, monkeypatch, clock, "no arena")
    assert result.kept == () and result.runtime == RuntimeSpec()
    assert by_name(result)["no arena"] == ("dropped", "not faster when measured once more (not distinguishable)")
    assert result.confirmed is not None and result.confirmed.verdict == "dropped"


def rewritten(tmp_path: Path, scale: float) -> Option:
    """The same model in a file of its own, its first weights scaled."""
    folder = tmp_path / "other"
    variant = cnn(folder)
    model = onnx.load(folder / "model.onnx")
    weights = onnx.numpy_helper.to_array(model.graph.initializer[0]) * np.float32(scale)
    model.graph.initializer[0].CopyFrom(constant("w0", weights))
    onnx.save(model, folder / "model.onnx")
    other = save(folder, list(model.graph.node), variant.inputs, variant.outputs, list(model.graph.initializer))
    return Option(name="folded", variant=other, folder=folder)


@pytest.mark.parametrize(("scale", "kept"), [(1.0000001, ("folded",)), (1.1, ())])
def test_other_answers_are_never_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float, kept: tuple[str, ...]
) -> None:
    option = rewritten(tmp_path, scale)
    files = option.variant.files if option.variant else ()
    clock = Clock(lambda v: 5.0 if v.files == files else 10.0)
    result = tuned(tmp_path, monkeypatch, clock, options=(option,))
    assert result.kept == kept
    if not kept:
        assert by_name(result)["folded"][1].startswith("answers differ by ")


def test_in_int8_answers_may_move_but_no_row_may_change_its_largest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "digits"
    plain = digits(folder)
    np.savez(tmp_path / "x.npz", allow_pickle=False, image=np.random.default_rng(1).uniform(0, 16, (40, 1, 8, 8)))
    clock = Clock(lambda v: 10.0 if v.digest == plain.digest else 5.0)
    monkeypatch.setattr(tuning_bench, "compare", clock.compare)
    found = {}
    for name, other in {
        "shifted": digits(tmp_path / "shifted", bias=0.5),
        "other": digits(tmp_path / "other", seed=1),
    }.items():
        clock.calls = 0
        option = Option(name=name, variant=other, folder=tmp_path / name)
        fields = {"variant": plain, "folder": folder, "options": (option,), "inputs": tmp_path / "x.npz"}
        found[name] = tuning.tune(TuningRequest.model_validate(fields | {"int8": True}))
    assert found["shifted"].kept == ("shifted",) and found["shifted"].trials[0].difference == pytest.approx(
        0.5, abs=1e-3
    )
    assert found["other"].kept == () and "rows get another largest output" in found["other"].trials[0].reason


def test_an_option_that_fails_is_one_line_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken").mkdir()
    option = rewritten(tmp_path, 1.0)
    assert option.variant is not None
    wrong = Variant.model_validate({**option.variant.model_dump(), "digest": "", "inputs": option.variant.outputs})
    broken = option.model_copy(update={"variant": wrong})
    result = tuned(tmp_path, monkeypatch, Clock(lambda v: 1.0), options=(broken, OPTIONS["no arena"]))
    assert by_name(result)["folded"][1].startswith("fails: the manifest's inputs")
    assert by_name(result)["no arena"] == ("dropped", "not distinguishable")


# -- the folded file --------------------------------------------------------------------------------------------
def test_folding_keeps_signature_operators_and_answers(tmp_path: Path) -> None:
    variant = cnn(tmp_path)
    file = (tmp_path / "model.onnx").read_bytes()
    assert fold(file, tmp_path) is None  # nothing to fold
    model = onnx.load_from_string(file)
    model.graph.initializer.append(constant("one", np.float32(1)))
    model.graph.node.insert(0, helper.make_node("Add", ["one", "one"], ["two"]))
    model.graph.node.insert(1, helper.make_node("Mul", ["w0", "two"], ["w0x2"]))
    model.graph.node[2].input[1] = "w0x2"
    folded = fold(model.SerializeToString(), tmp_path)
    assert folded is not None
    small = onnx.load_from_string(folded)
    assert [n.op_type for n in small.graph.node] == ["Conv", "Relu"] * 3
    assert signature(small) == (variant.inputs, variant.outputs)
    x = np.random.default_rng(0).normal(size=(2, 16, 8, 8)).astype(np.float32)
    sessions = [onnxruntime.InferenceSession(data) for data in (model.SerializeToString(), folded)]
    first, second = (session.run(None, {"x": x})[0] for session in sessions)
    np.testing.assert_allclose(first, second, atol=1e-5)
    assert not quantized(file)


# -- the stage --------------------------------------------------------------------------------------------------
QUICK = TuneSpec(options=("arena", "levels", "folded"), rounds=5, seconds=0.02)


@pytest.mark.timeout(120)
def test_the_stage_answers_a_variant_and_a_table_of_every_option(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "home"))
    job, data = make_job(store, tmp_path), make_data(store)
    variant = make_variant(store, "student.fp32", linear(), width=64)
    outcome = tune.task.fn(job, QUICK, data=data, variant=variant)
    values, found = outcome.values, outcome.variant
    assert outcome.name == "tune:student.fp32"
    assert [row["option"] for row in values["options"]] == ["no arena", "level extended", "level basic"]
    assert {row["reason"] for row in values["options"][1:]} == {"changes nothing in this graph"}
    assert values["variants"][found.digest]["bytes"] == variant.size
    assert values["p50_ms"] > 0 and values["control"][0] < 1 < values["control"][1]
    if values["kept"]:  # as the machine pleases
        assert found.name == "student.fp32.tuned" and found.stage == "tune" and not found.runtime.arena
        assert found.files == variant.files and values["tuned_p50_ms"] < values["p50_ms"]
    else:
        assert found == variant and values["tuned_p50_ms"] is None
    assert tune.task.fn(job, QUICK, data=data, variant=variant).status == "reused"
    wrong = Variant.model_validate({**variant.model_dump(), "digest": "", "runtime": {"provider": "TeraProvider"}})
    store.save_variant(wrong)
    with pytest.raises(ChildFailed, match=r"tuning student\.fp32 failed: EngineLoadError: .*needs TeraProvider"):
        tune.task.fn(job, QUICK, data=data, variant=wrong)


class StubChild:
    """What a stage's process gets, without the process."""

    def __init__(self, store: Store, variant: Variant, spec: TuneSpec, workdir: Path) -> None:
        self.store, self.workdir, self.data = store, workdir, None
        self.inputs, self.spec = {"variant": variant}, spec.model_dump()
        inputs = store.publish_bytes(b"unread", "validation.npz")
        self.extra = {"inputs": inputs.model_dump(mode="json"), "name": "student.tuned"}

    def progress(self, share: float, text: str) -> None: ...


def test_what_is_kept_becomes_a_variant_that_the_engine_runs(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = cnn(tmp_path / "plain")
    model = onnx.load(tmp_path / "plain" / "model.onnx")
    model.graph.initializer.append(constant("one", np.float32(1)))
    model.graph.node.insert(0, helper.make_node("Mul", ["w0", "one"], ["w0x1"]))
    model.graph.node[1].input[0:2] = ["x", "w0x1"]
    variant = save(tmp_path / "m", list(model.graph.node), plain.inputs, plain.outputs, list(model.graph.initializer))
    store.publish_folder(tmp_path / "m")
    asked: list[dict[str, Any]] = []

    def answer(request: dict[str, Any], progress: Any) -> dict[str, Any]:
        asked.append(request)
        TuningRequest.model_validate(request)
        numbers: dict[str, Any] = {
            "trials": [],
            "control": (0.9, 1.1),
            "confirmed": None,
            "p50_ms": 2.0,
            "tuned_p50_ms": 1.0,
        }
        runtime = RuntimeSpec(arena=False).model_dump(mode="json")
        return {"kept": ["folded", "no arena"], "runtime": runtime, **numbers}

    monkeypatch.setattr(tune_child, "ask_tuning", answer)
    (tmp_path / "work").mkdir()
    result = tune_child.main(cast(Any, StubChild(store, variant, TuneSpec(), tmp_path / "work")))
    assert [o["name"] for o in asked[0]["options"]][-1] == "folded" and not asked[0]["int8"]
    (found,) = result.variants
    assert (found.name, found.stage, found.runtime) == ("student.tuned", "tune", RuntimeSpec(arena=False))
    assert found.digest != variant.digest and found.files != variant.files
    assert result.values["variants"][found.digest]["bytes"] == found.size
    assert len(onnx.load_from_string(store.fetch_bytes(found.file("model.onnx"))).graph.node) == 6
    x = np.random.default_rng(0).normal(size=(2, 16, 8, 8)).astype(np.float32)
    folder = store.materialise(found.files, tmp_path / "served")
    np.testing.assert_allclose(
        Engine(folder, found).run({"x": x})["y"], Engine(tmp_path / "m", variant).run({"x": x})["y"], atol=1e-5
    )
