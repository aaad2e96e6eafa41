"""Engine processes: what they are sent, how they answer together, how they die, and what becomes of their requests."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psutil
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import helper
from onnx_models import answer, constant, digits, log, save, slow
from patience import wait_in_loop

from model_registry.cpu_class import CpuClassMismatch
from model_registry.variant import TensorSpec, Variant
from serving.engine import Engine
from serving.engines.batch_certificate import BatchCertificate, certify
from serving.engines.batch_run import BatchRunner
from serving.engines.engine_frames import (
    PLAIN,
    Answered,
    Asked,
    EngineWork,
    FrameCutter,
    MalformedFrame,
    pack_answered,
    pack_asked,
    unpack_answered,
    unpack_asked,
)
from serving.engines.engine_lane import EngineLane
from serving.engines.engine_link import EngineLink
from serving.engines.frame_worker import FrameWorker
from serving.engines.infer_job import InferJob
from serving.engines.nursery_link import Nursery
from serving.exceptions import EngineLoadError, EngineRunError, LoadFailed, Overloaded
from serving.limits import RequestLimits
from serving.protocol import InferRequest
from serving.tensors import Array

FOREVER = {
    "inputs": [
        {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [5, 5]},
        {"name": "steps", "shape": [1], "datatype": "INT64", "data": [2**62]},
    ]
}
TWO = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [5, 5]}]}


def image(rows: int = 1, seed: int = 0) -> Array:
    return np.random.default_rng(seed).uniform(0, 16, size=(rows, 1, 8, 8)).astype(np.float32)


def asks(array: Array, name: str = "image", **more: Any) -> dict[str, Any]:
    tensor = {"name": name, "shape": list(array.shape), "datatype": "FP32", "data": array.ravel().tolist()}
    return {"inputs": [tensor], **more}


def changed(variant: Variant, **changes: Any) -> Variant:
    return Variant.model_validate({**variant.model_dump(), "digest": "", **changes})


# -- frames -----------------------------------------------------------------------------------------------------
WORK = EngineWork(3, 1, 10, 20, 30, True)


@settings(max_examples=50)
@given(st.lists(st.binary(max_size=50), max_size=5), st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_frames_arrive_whole_whatever_the_pieces(bodies: list[bytes], pieces: list[int]) -> None:
    asked = [Asked(number, body, -1, 0x11, 0.5 * number) for number, body in enumerate(bodies)]
    answers = [Answered(number, body, number, 200, 1) for number, body in enumerate(bodies)]
    data = b"".join(pack_asked(asked)) + pack_answered(answers, WORK)
    cutter, found = FrameCutter(), list[bytes]()
    while data:
        size = pieces.pop(0) if pieces else 17
        found += cutter.feed(data[:size])
        data = data[size:]
    assert unpack_asked(found[0]) == asked
    assert unpack_answered(found[1]) == (answers, WORK)
    assert list(FrameCutter().feed(found[1])) == [found[1]], "in one piece, as nearly always"


@given(st.binary(max_size=200), st.integers(0, 100), st.integers(0, 255))
@example(bytes((17, 0, 0, 0, 1, 0)) + bytes(17), 0, 17)  # room for the head of an answer, not for that of a request
def test_broken_frames_are_named(data: bytes, place: int, byte: int) -> None:
    good = bytearray(b"".join(pack_asked([Asked(1, b"abc", -1, 0, 0)])))
    good[place % len(good)] = byte
    for broken in (data, bytes(good)):
        try:
            for frame in FrameCutter().feed(broken):
                unpack_asked(frame)
                unpack_answered(frame)
        except MalformedFrame as error:
            assert str(error)


# -- batches ----------------------------------------------------------------------------------------------------
def dynamic(folder: Path) -> Variant:
    """A product whose int8 scale comes from the whole batch."""
    x, y = TensorSpec(name="x", datatype="FP32", shape=(-1, 4)), TensorSpec(name="y", datatype="FP32", shape=(-1, 2))
    weights = np.arange(-4, 4, dtype=np.int8).reshape(4, 2)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("MatMulInteger", ["q", "w", "zero"], ["whole"]),
        helper.make_node("Cast", ["whole"], ["cast"], to=1),
        helper.make_node("Mul", ["cast", "scale"], ["y"]),
    ]
    return save(folder, nodes, [x], [y], [constant("w", weights)])


def mean_of_batch(folder: Path) -> Variant:
    x, y = (TensorSpec(name=name, datatype="FP32", shape=(-1, 4)) for name in ("x", "y"))
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["y"]),
    ]
    return save(folder, nodes, [x], [y], [constant("axes", np.array([0]))])


def certified(folder: Path, make: Callable[[Path], Variant]) -> BatchCertificate:
    engine = Engine(folder, make(folder))
    return certify(engine, (folder / "model.onnx").read_bytes())


def test_only_models_that_answer_a_row_alike_in_any_batch_are_batched(tmp_path: Path) -> None:
    assert certified(tmp_path / "digits", digits).kind in ("exact", "close")
    assert "scale from the whole batch" in certified(tmp_path / "dynamic", dynamic).why
    found = certified(tmp_path / "mean", mean_of_batch)
    assert (found.kind, found.joins) == ("none", False)
    assert "otherwise than alone" in found.why
    assert "no batch dimension" in certified(tmp_path / "slow", slow).why


def requests(*rows: int) -> list[InferRequest]:
    return [InferRequest({"image": image(n, seed)}, ("logits", "label"), rows=n) for seed, n in enumerate(rows)]


def test_batches_never_change_an_answer_whatever_is_in_them(tmp_path: Path) -> None:
    engine = Engine(tmp_path, digits(tmp_path))
    runner = BatchRunner(engine, BatchCertificate("close", ""), most_rows=8)
    asked = requests(1, 3, 20, 8, 1, 7)
    asked[1] = asked[1]._replace(outputs=("label",))
    groups = list(runner.groups(asked))
    assert sorted(number for group in groups for number in group) == list(range(6))
    assert any(len(group) > 1 for group in groups)
    for group in groups:
        for number, found in zip(group, runner.run([asked[i] for i in group]), strict=True):
            assert not isinstance(found, EngineRunError)
            alone = engine.run(asked[number].inputs, asked[number].outputs)
            assert list(found) == list(alone)
            assert found["label"].tolist() == alone["label"].tolist()
            if "logits" in alone:
                np.testing.assert_allclose(found["logits"], alone["logits"], rtol=1e-5)
    assert runner.runs(20) == 3
    apart = BatchRunner(engine, BatchCertificate("none", ""), most_rows=8)
    assert list(apart.groups(asked)) == [[i] for i in range(6)]
    assert apart.runs(20) == 1, "a model that needs its batch whole gets it whole"


def test_one_request_that_fails_harms_no_other_of_its_batch(tmp_path: Path) -> None:
    x, y = (TensorSpec(name=name, datatype="FP32", shape=(-1, -1)) for name in ("x", "y"))
    nodes = [helper.make_node("Add", ["x", "three"], ["y"])]
    variant = save(tmp_path, nodes, [x], [y], [constant("three", np.zeros(3, dtype=np.float32))])
    runner = BatchRunner(Engine(tmp_path, variant), BatchCertificate("exact", ""), most_rows=8)
    asked = [InferRequest({"x": np.ones((1, width), np.float32)}, ("y",), rows=1) for width in (3, 2, 3, 2)]
    groups = list(runner.groups(asked))
    assert groups == [[0, 2], [1, 3]], "rows of one shape go together"
    assert all(isinstance(found, EngineRunError) for found in runner.run([asked[1], asked[3]]))
    assert [found["y"].shape for found in runner.run([asked[0], asked[2]])] == [(1, 3)] * 2  # type: ignore[index]


# -- processes --------------------------------------------------------------------------------------------------
class Question(InferJob):
    """A job whose answer a test waits for."""

    __slots__ = ("answer", "patient")

    def __init__(self, body: Any, **how: Any) -> None:
        content = body if isinstance(body, bytes) else orjson.dumps(body)
        super().__init__(content, began=time.monotonic(), **how)
        self.answer: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
        self.patient = True

    @property
    def wanted(self) -> bool:
        return self.patient

    def deliver(self, answered: Answered) -> None:
        self.answer.set_result(answered)


class Watch:
    """Notes what a lane says."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.statuses: list[int] = []
        self.rows: list[int] = []

    def restarting(self, why: str) -> None:
        self.said.append(why)

    def restarted(self) -> None:
        self.said.append("restarted")

    def answered(self, jobs: list[tuple[InferJob, int]], work: EngineWork) -> None:
        self.statuses += [status for _, status in jobs]
        self.rows.append(work.rows)

    def refused(self, status: int) -> None:
        self.statuses.append(status)


@asynccontextmanager
async def lane(
    folder: Path, variant: Variant, limits: RequestLimits | None = None, *, count: int = 1
) -> AsyncIterator[tuple[EngineLane, Watch]]:
    nursery, watch, chosen = Nursery(), Watch(), limits or RequestLimits()

    def start(heard: Any) -> Awaitable[EngineLink]:
        return EngineLink.start(nursery, folder, variant, heard, name=("m", "1"), seconds=chosen.load_seconds)

    made = EngineLane(start, chosen, watch, name="m/1", count=count)
    try:
        await made.keeper.open()
        yield made, watch
    finally:
        await made.close()
        await nursery.close()


async def ask(where: EngineLane, body: Any, **how: Any) -> tuple[int, Any]:
    question = Question(body, **how)
    where.submit(question, at_once=True)
    answered = await question.answer
    return answered.status, orjson.loads(answered.body)


def test_the_process_answers_as_the_engine_does(tmp_path: Path) -> None:
    variant = digits(tmp_path)
    engine = Engine(tmp_path, variant)

    async def scene() -> None:
        async with lane(tmp_path, variant) as (made, watch):
            link = made.engines[0]
            assert link.outputs == engine.outputs
            assert psutil.Process(link.pid).name() == "winnow-engine"
            asked = [Question(asks(image(rows, rows), id=str(rows))) for rows in range(1, 30)]
            for question in asked:
                made.submit(question, at_once=False)
            for rows, question in enumerate(asked, start=1):
                body = orjson.loads((await question.answer).body)
                expected = engine.run({"image": image(rows, rows)})
                assert (body["id"], body["model_version"]) == (str(rows), "1")
                np.testing.assert_allclose(body["outputs"][0]["data"], expected["logits"].ravel(), rtol=1e-5)
                assert body["outputs"][1]["data"] == [label.decode() for label in expected["label"]]
            assert sum(watch.rows) == sum(range(1, 30))
            assert len(watch.rows) < 29, "what came in one turn went together"
            assert max(watch.rows) <= 64
        assert link.gone.result() == "exit code 0"

    asyncio.run(scene())


def test_what_cannot_be_in_time_behind_others_of_its_frame_is_not_begun(tmp_path: Path) -> None:
    variant = answer(tmp_path, 3)
    manifest = variant.model_dump(mode="json", by_alias=True)
    worker = FrameWorker({"folder": str(tmp_path), "variant": manifest, "model": "m", "version": "1"}, RequestLimits())
    worker._row_seconds = 1.0
    body = orjson.dumps({**TWO, "parameters": {"timeout": 2_500_000}})
    now, frames = time.monotonic(), list[bytes]()
    asked = [Asked(number, body, -1, PLAIN, now) for number in range(3)] + [Asked(3, body, -1, PLAIN, now - 2)]

    class Sink:
        sendall = staticmethod(frames.append)

    worker.answer(Sink(), b"".join(pack_asked(asked)))
    statuses = {found.number: found.status for frame in frames for found in unpack_answered(frame)[0]}
    assert statuses == {0: 200, 1: 200, 2: 504, 3: 504}


def test_refusals_come_back_one_by_one(tmp_path: Path) -> None:
    async def scene() -> None:
        async with lane(tmp_path, digits(tmp_path)) as (made, _):
            good, bad = Question(asks(image())), Question(b"{")
            late = Question(asks(image(), parameters={"timeout": 1}))
            for question in (bad, good, late):
                made.submit(question, at_once=False)
            found = [(await question.answer).status for question in (bad, good, late)]
            assert found == [400, 200, 504]
            text = orjson.loads((await late.answer).body)["error"]
            assert "timeout is 1 us, so it was not begun" in text

    asyncio.run(scene())


def test_load_errors_arrive_by_name_and_leave_no_process(tmp_path: Path) -> None:
    good = digits(tmp_path)
    before = engines()

    async def scene() -> None:
        cases: list[tuple[Variant, type[Exception], str]] = [
            (changed(good, runtime={"cpu_class": "sparc/vis"}), CpuClassMismatch, "sparc"),
            (changed(good, runtime={"provider": "TeraExecutionProvider"}), EngineLoadError, "TeraExecutionProvider"),
        ]
        for variant, kind, message in cases:
            with pytest.raises(kind, match=message):
                async with lane(tmp_path, variant):
                    pass
        (tmp_path / "model.onnx").write_bytes(b"")
        with pytest.raises(LoadFailed, match="changed between"):
            async with lane(tmp_path, good):
                pass

    asyncio.run(scene())
    assert engines() == before


def test_a_model_that_fails_on_zeros_does_not_load(tmp_path: Path) -> None:
    x, y = (TensorSpec(name=name, datatype="FP32", shape=(-1, -1)) for name in ("x", "y"))
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    variant = save(tmp_path, nodes, [x], [y], [constant("w", np.zeros((3, 2), dtype=np.float32))])

    async def scene() -> None:
        with pytest.raises(EngineLoadError, match="fails on an input of zeros"):
            async with lane(tmp_path, variant):
                pass

    asyncio.run(scene())


@pytest.mark.parametrize("count", [1, 2])
def test_a_killed_engine_costs_nobody_an_answer(tmp_path: Path, count: int) -> None:
    async def scene() -> None:
        async with lane(tmp_path, answer(tmp_path, 1), RequestLimits(pending=10_000), count=count) as (made, watch):
            asked = list[Question]()
            for turn in range(300):
                asked += [Question(TWO) for _ in range(8)]
                for question in asked[-8:]:
                    made.submit(question, at_once=False)
                if turn in (100, 200):
                    await asyncio.gather(*(question.answer for question in asked[:-8]))  # no request meets both kills
                    os.kill(made.engines[0].pid, signal.SIGKILL)
                await asyncio.sleep(0.001)
            answers = await asyncio.gather(*(question.answer for question in asked))
            assert {found.status for found in answers} == {200}
            await wait_in_loop(lambda: made.keeper.restarts == 2)
            assert watch.said.count("restarted") == 2
            assert not [text for text in watch.said if text != "restarted"], "nobody was told to wait"

    asyncio.run(scene())


def test_a_request_that_kills_engines_kills_two_and_harms_no_other(tmp_path: Path) -> None:
    async def scene() -> None:
        async with lane(tmp_path, slow(tmp_path)) as (made, _):
            poison = Question(FOREVER)
            made.submit(poison, at_once=False)
            beside = [Question({"inputs": [TWO["inputs"][0], {**FOREVER["inputs"][1], "data": [1]}]}) for _ in range(3)]
            for question in beside:
                made.submit(question, at_once=False)
            for _ in range(2):
                await wait_in_loop(lambda: any(poison in engine.flying.values() for engine in made.engines))
                await asyncio.sleep(0.05)
                os.kill(made.engines[0].pid, signal.SIGKILL)
                await wait_in_loop(lambda: poison.tries > 0)
                await wait_in_loop(lambda: bool(made.engines) or poison.answer.done())
            assert (await poison.answer).status == 503
            assert b"died 2 times on this request" in (await poison.answer).body
            assert {(await question.answer).status for question in beside} == {200}

    asyncio.run(scene())


def test_an_engine_that_hangs_is_killed_and_its_request_is_told(tmp_path: Path) -> None:
    limits = RequestLimits(infer_seconds=0.3)

    async def scene() -> None:
        async with lane(tmp_path, answer(tmp_path, 1), limits) as (made, watch):
            first = made.engines[0]
            os.kill(first.pid, signal.SIGSTOP)
            question = Question(TWO)
            made.submit(question, at_once=True)
            while not question.answer.done():
                made.sweep()
                await asyncio.sleep(0.05)
            assert (await question.answer).status == 504
            assert await asyncio.wait_for(first.gone, 5) == "killed by SIGKILL"
            assert (await ask(made, TWO))[0] == 200
            assert 504 in watch.statuses

    asyncio.run(scene())


def test_what_waits_is_bounded_and_what_nobody_wants_is_not_computed(tmp_path: Path) -> None:
    limits = RequestLimits(pending=2)

    async def scene() -> None:
        async with lane(tmp_path, slow(tmp_path), limits) as (made, watch):
            held = [Question(FOREVER) for _ in range(2)]
            for question in held:
                made.submit(question, at_once=True)  # two frames: as many as an engine has
            waiting = [Question(FOREVER) for _ in range(2)]
            for question in waiting:
                made.submit(question, at_once=True)
            with pytest.raises(Overloaded, match="2 requests are waiting"):
                made.submit(Question(FOREVER), at_once=True)
            for question in (*held, *waiting):
                question.patient = False
            os.kill(made.engines[0].pid, signal.SIGKILL)
            await wait_in_loop(lambda: bool(made.engines) and not made.waiting)
            assert all(not engine.flying for engine in made.engines), "the clients are gone"
            assert watch.rows == []

    asyncio.run(scene())


def test_whoever_still_waits_when_the_engines_are_taken_away_is_told(tmp_path: Path) -> None:
    async def scene() -> None:
        async with lane(tmp_path, slow(tmp_path)) as (made, _):
            asked = [Question(FOREVER) for _ in range(4)]
            for question in asked:
                made.submit(question, at_once=True)
        answers = [await asyncio.wait_for(question.answer, 1) for question in asked]
        assert {(found.status, b"taken away" in found.body) for found in answers} == {(503, True)}

    asyncio.run(scene())


def test_the_nursery_is_started_again_if_it_dies(tmp_path: Path) -> None:
    async def scene() -> None:
        async with lane(tmp_path, answer(tmp_path, 1)) as (made, _):
            engine = psutil.Process(made.engines[0].pid)
            nursery = engine.parent()
            assert nursery is not None
            nursery.kill()
            assert (await ask(made, TWO))[0] == 200, "engines go on without it"
            engine.kill()
            assert (await asyncio.wait_for(ask(made, TWO), 30))[0] == 200
            assert psutil.Process(made.engines[0].pid).parent() != nursery

    asyncio.run(scene())


def test_engines_that_answer_are_replaced_at_once_however_often_they_die(tmp_path: Path) -> None:
    async def scene() -> None:
        async with lane(tmp_path, answer(tmp_path, 1)) as (made, _):
            for _ in range(7):
                assert (await asyncio.wait_for(ask(made, TWO), 3))[0] == 200
                for engine in made.engines:
                    psutil.Process(engine.pid).kill()
                await asyncio.sleep(0.05)

    asyncio.run(scene())


def test_engines_end_with_their_front_even_in_the_middle_of_a_model(tmp_path: Path) -> None:
    variant = slow(tmp_path)
    (tmp_path / "variant.json").write_bytes(variant.to_json())
    (tmp_path / "forever.json").write_bytes(orjson.dumps(FOREVER))
    code = """
import asyncio, sys
from pathlib import Path
from model_registry.variant import Variant
from serving.engines.engine_link import EngineLink
from serving.engines.infer_job import InferJob
from serving.engines.nursery_link import Nursery
class Unanswered(InferJob):
    def deliver(self, answered): raise AssertionError("it takes for ever")
async def main():
    folder, nursery = Path(sys.argv[1]), Nursery()
    variant = Variant.model_validate_json((folder / "variant.json").read_bytes())
    link = await EngineLink.start(nursery, folder, variant, lambda *_: None)
    link.send([Unanswered((folder / "forever.json").read_bytes(), began=0.0)])
    await asyncio.sleep(0.2)
    print(link.pid, nursery.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    started = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    assert len(started) == 2 and all(process.is_running() for process in started)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    gone, _ = psutil.wait_procs(started, timeout=10)
    assert len(gone) == 2


def test_what_libraries_print_stays_out_of_the_frames(tmp_path: Path) -> None:
    variant = log(tmp_path)

    async def scene() -> None:
        async with lane(tmp_path, variant) as (made, _):
            descriptors = Path(f"/proc/{made.engines[0].pid}/fd")
            assert (descriptors / "1").readlink() == (descriptors / "2").readlink()
            status, body = await ask(made, asks(np.array([-1, 0, 1], dtype=np.float32), "x"))
            assert (status, body["outputs"][0]["data"]) == (200, [None, None, 0.0])

    asyncio.run(scene())


def test_engines_share_what_was_imported(tmp_path: Path) -> None:
    """What a version costs beside its weights: the pages that are its own."""

    async def scene() -> None:
        async with lane(tmp_path, digits(tmp_path)) as (made, _):
            await ask(made, asks(image()))
            rollup = Path(f"/proc/{made.engines[0].pid}/smaps_rollup").read_text()
            own = sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_"))
            assert own < 40 << 10, "KiB"

    asyncio.run(scene())


def engines() -> set[int]:
    """Engine processes below this one that still run."""
    children = psutil.Process().children(recursive=True)
    return {child.pid for child in children if child.is_running() and child.name() == "winnow-engine"}
