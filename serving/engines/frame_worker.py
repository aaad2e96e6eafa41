"""Reads the requests of a frame, runs them as batches, and writes their answers."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import orjson

from model_registry.variant import Variant
from serving.engine import MODEL, Engine
from serving.engines.answer_writer import AnswerWriter
from serving.engines.batch_certificate import BatchCertificate, certify
from serving.engines.batch_run import BatchRunner, Outputs
from serving.engines.engine_frames import (
    CHOOSE,
    CHOSEN,
    COUNT_TOKENS,
    GENERATE,
    GZIP,
    MAY_PACK,
    PLAIN,
    Answered,
    Asked,
    EngineWork,
    pack_answered,
    unpack_asked,
)
from serving.engines.load_memory import bounded_memory, loading_bytes
from serving.engines.packed_body import LEAST_PACKED, packed_body, unpacked_body
from serving.engines.quick_request import QuickReader, QuickRequest
from serving.exceptions import EngineRunError, InferenceTimedOut, InvalidRequest, ServingError, Unsupported
from serving.limits import RequestLimits
from serving.protocol import InferRequest, parse_request
from serving.verified_file import read_verified
from serving.wishes import as_bytes

_PACKING = 0x07
_LOADING_NICE = 10
"""How far a version that is being loaded stands back behind those that answer."""
log = logging.getLogger("winnow.serving")


class AnswerSink(Protocol):
    """Where frames of answers go."""

    def sendall(self, data: bytes, /) -> Any: ...


class FrameWorker:
    """Answers frames of requests for one version.

    Args:
        order: ``folder``, ``variant``, ``model``, ``version``: what is loaded, and under which name it answers.

    Attributes:
        engine: that answers.
        ready: what the front is told of it.
    """

    def __init__(self, order: dict[str, Any], limits: RequestLimits) -> None:
        began = time.perf_counter()
        engine, certificate = _load(order)
        model, version = order["model"], order["version"]
        self.engine = engine
        self._limits, self._name = limits, (model, version)
        self.runner = BatchRunner(engine, certificate, limits.rows_per_run)
        self._quick = QuickReader(engine.served, engine.outputs, limits)
        self._write = AnswerWriter(model, version)
        self._row_seconds = certificate.seconds
        self.ready = {
            "inputs": [spec.model_dump(mode="json") for spec in engine.served],
            "outputs": [spec.model_dump(mode="json") for spec in engine.outputs],
            "batching": {"kind": certificate.kind, "why": certificate.why, "most_rows": self.runner.most_rows},
            "seconds": round(time.perf_counter() - began, 4),
            "cpu_seconds": round(time.process_time(), 4),
        }

    def answer(self, sink: AnswerSink, frame: bytes) -> None:
        """Answer the requests of a frame, those of each run as soon as it is done."""
        self.answer_all(sink, unpack_asked(frame))

    def answer_all(self, sink: AnswerSink, requests: Sequence[Asked]) -> None:
        """The same for requests that were unpacked."""
        began, rows = time.perf_counter(), 0
        answers, quick, strict = (
            list[Answered](),
            list[tuple[Asked, QuickRequest]](),
            list[tuple[Asked, InferRequest]](),
        )
        for asked in requests:
            try:
                if asked.packing & GENERATE:
                    raise Unsupported("texts are continued by engines in processes of their own: see isolation")
                request = self._read(asked, rows)
                rows += max(request.rows, 1)
                if isinstance(request, QuickRequest):
                    quick.append((asked, request))
                elif request.wishes is not None and not asked.packing & CHOSEN:
                    answers.append(Answered(asked.number, as_bytes(request.wishes), -1, CHOOSE, PLAIN))
                else:
                    strict.append((asked, request))
            except ServingError as error:
                answers.append(_refused(asked, error))
        groups: list[Callable[[], _Done]] = [
            partial(self._run_quick, quick[chosen])
            for chosen in self.runner.chunks([request.rows for _, request in quick])
        ]
        groups += [
            partial(self._run_strict, [strict[i] for i in members])
            for members in self.runner.groups([request for _, request in strict])
        ]
        input_us = _us(began, time.perf_counter())
        for number, run in enumerate(groups):
            done = run()
            if done.rows:
                self._row_seconds += 0.1 * (done.run_us / 1e6 / done.rows - self._row_seconds)
            last = number == len(groups) - 1
            work = EngineWork(done.rows, done.runs, input_us + done.input_us, done.run_us, done.output_us, last)
            sink.sendall(pack_answered(answers + done.answers, work))
            answers, input_us = [], 0
        if not groups:
            sink.sendall(pack_answered(answers, EngineWork(0, 0, input_us, 0, 0, True)))

    def _read(self, asked: Asked, ahead: int) -> QuickRequest | InferRequest:
        """The request; ``ahead``: rows of its frame that are computed before it."""
        packing = asked.packing & _PACKING
        body = unpacked_body(asked.body, packing, self._limits) if packing != PLAIN else asked.body
        request = self._quick(body, asked.json_bytes) or self._read_strictly(asked, body)
        if request.timeout:
            waited = 1e6 * (time.monotonic() - asked.began)
            needed = 1e6 * self._row_seconds * (ahead + max(request.rows, 1))
            if waited + needed > request.timeout:
                raise InferenceTimedOut(
                    f"the request waited {waited:.0f} us and would take {needed:.0f} us more; its timeout is "
                    f"{request.timeout} us, so it was not begun"
                )
        return request

    def _read_strictly(self, asked: Asked, body: bytes | memoryview) -> InferRequest:
        content = bytes(body) if asked.json_bytes == -1 else body
        parse = partial(parse_request, outputs=self.engine.outputs, limits=self._limits, json_bytes=asked.json_bytes)
        try:
            request = parse(content, self.engine.served)
        except InvalidRequest:
            if self.engine.served == self.engine.inputs:
                raise
            with suppress(InvalidRequest):  # ids, as they are recorded and measured
                return parse(content, self.engine.inputs)
            raise
        inputs = self.engine.tokenized(request.inputs)
        return request if inputs is request.inputs else request._replace(inputs=dict(inputs))

    def _run_quick(self, pairs: list[tuple[Asked, QuickRequest]]) -> _Done:
        """Run requests of the common form as one array; each by itself and strictly where that does not work."""
        assert self._quick.spec is not None
        began = time.perf_counter()
        requests = [request for _, request in pairs]
        array = self._quick.array(requests)
        if array is None:
            return self._run_apart(pairs)
        names = requests[0].outputs
        if any(request.outputs is not names for request in requests):
            names = tuple(self.runner.in_order({name for request in requests for name in request.outputs}))
        read = time.perf_counter()
        try:
            found = self.runner.run_rows({self._quick.spec.name: array}, names)
        except EngineRunError as error:
            if len(pairs) > 1:
                return self._run_apart(pairs)
            return _Done([self._failed(pairs[0][0], error)], 0, 1, 0, _us(read, time.perf_counter()), 0)
        ran = time.perf_counter()
        answers, at = list[Answered](), 0
        for asked, request in pairs:
            until = at + request.rows
            outputs = found if until - at == len(array) else {name: found[name][at:until] for name in names}
            if request.outputs is not names:
                outputs = {name: outputs[name] for name in request.outputs}
            answers.append(self._made(asked, request, outputs))
            at = until
        done = time.perf_counter()
        return _Done(answers, at, self.runner.runs(at), _us(began, read), _us(read, ran), _us(ran, done))

    def _run_apart(self, pairs: list[tuple[Asked, QuickRequest]]) -> _Done:
        """One by one, so that each is told what is wrong with it and no other."""
        whole = _Done([], 0, 0, 0, 0, 0)
        for asked, _ in pairs:
            try:
                packing = asked.packing & _PACKING
                body = unpacked_body(asked.body, packing, self._limits) if packing != PLAIN else asked.body
                whole = whole.and_(self._run_strict([(asked, self._read_strictly(asked, body))]))
            except ServingError as error:
                whole.answers.append(_refused(asked, error))
        return whole

    def _run_strict(self, pairs: list[tuple[Asked, InferRequest]]) -> _Done:
        began = time.perf_counter()
        requests = [request for _, request in pairs]
        found = self.runner.run(requests)
        ran = time.perf_counter()
        answers = [
            self._failed(asked, outputs) if isinstance(outputs, EngineRunError) else self._made(asked, request, outputs)
            for (asked, request), outputs in zip(pairs, found, strict=True)
        ]
        rows = sum(max(request.rows, 1) for request in requests)
        return _Done(answers, rows, self.runner.runs(rows), 0, _us(began, ran), _us(ran, time.perf_counter()))

    def _failed(self, asked: Asked, error: EngineRunError) -> Answered:
        model, version = self._name
        log.error("model %s version %s failed on a request: %s", model, version, error)
        text = f"model {model!r} failed on this input though its shape is right; the endpoint's log says why"
        return _refused(asked, ServingError(text))

    def _made(self, asked: Asked, request: InferRequest | QuickRequest, outputs: Outputs) -> Answered:
        try:
            body, json_bytes = self._write(outputs, request.id, request.binary)
        except ServingError as error:
            return _refused(asked, error)
        if asked.packing & COUNT_TOKENS:
            assert isinstance(request, InferRequest), "text is never of the quick form"
            body += self.engine.tokens_read(request.inputs).to_bytes(4, "little")
        if asked.packing & MAY_PACK and len(body) >= LEAST_PACKED:
            return Answered(asked.number, packed_body(body), json_bytes, 200, GZIP)
        return Answered(asked.number, body, json_bytes, 200, PLAIN)


class _Done(NamedTuple):
    """Requests that were run together, in microseconds."""

    answers: list[Answered]
    rows: int
    runs: int
    input_us: int
    run_us: int
    output_us: int

    def and_(self, other: _Done) -> _Done:
        counts = [mine + theirs for mine, theirs in zip(self[1:], other[1:], strict=True)]
        return _Done(self.answers + other.answers, *counts)


def _load(order: dict[str, Any]) -> tuple[Engine, BatchCertificate]:
    """The engine, warmed up, with its certificate; at a low priority where that can be taken back.

    A thread's priority is its own on Linux. Threads that ONNX Runtime starts inherit it from the one that loads, so a
    model of several threads is loaded by the main one.
    """
    folder, variant = Path(order["folder"]), Variant.model_validate(order["variant"])
    found: list[tuple[Engine, BatchCertificate]] = []
    failed: list[BaseException] = []

    def load() -> None:
        engine = Engine(folder, variant)
        engine.warm_up()
        found.append((engine, certify(engine, read_verified(folder, variant.file(MODEL)))))

    def behind() -> None:
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOADING_NICE)
            load()
        except BaseException as error:  # noqa: BLE001 - raised again below, in the main thread
            failed.append(error)

    with bounded_memory(variant, loading_bytes(variant)):
        if variant.runtime.intra_op_threads == 1 and sys.platform == "linux":
            thread = threading.Thread(target=behind)
            thread.start()
            thread.join()
        else:
            load()
        if failed:
            raise failed[0]
    return found[0]


def _refused(asked: Asked, error: ServingError) -> Answered:
    return Answered(asked.number, orjson.dumps({"error": str(error)}), -1, error.status, PLAIN)


def _us(since: float, until: float) -> int:
    return int(1e6 * (until - since))
