"""Ids of requests, the access log, traces and lines of the log, without a model."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import stat
import struct
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_http_connection import POST, Echo, play
from trace_collector import attributes, collector

import serving.telemetry.request_watch
from serving.engines.engine_frames import EngineWork
from serving.front.http_head import RequestHead, read_head
from serving.front.http_routes import Route
from serving.telemetry.access_log import AccessLog
from serving.telemetry.log_lines import JsonLines, log_form
from serving.telemetry.request_notes import LEFT, RequestMarks, RequestNotes, split_marks
from serving.telemetry.request_spans import RequestSpans
from serving.telemetry.request_watch import RequestWatch
from serving.telemetry.trace_settings import TracesMisconfigured, traces_are_wanted

PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
BARE = b"GET /a HTTP/1.1\r\nhost: a"


# -- ids --------------------------------------------------------------------------------------------------------
def test_what_differs_from_request_to_request_is_taken_out_of_the_head() -> None:
    raw = b"GET /a HTTP/1.1\r\nX-Request-ID:  a-1 \r\nhost: a\r\ntraceparent: " + PARENT + b"\r\ntracestate: k=v,l=w"
    assert split_marks(raw) == (BARE, RequestMarks(b"a-1", PARENT, b"k=v,l=w"))


@pytest.mark.parametrize(
    "line",
    [
        b"x-request-id: ",
        b"x-request-id: a b",
        b"x-request-id: a\r\n folded",
        b"x-request-id: " + b"a" * 129,
        b'x-request-id: "<script>',
        b"x-request-id: \xff",
        b"x-request-id: a\nb: c",
        b"x-request-id: a\r\nx-request-id: b",
        b"x-request-id : a",
        b"not-x-request-id: a",
        b"traceparent: 00-0",
    ],
)
def test_what_is_not_well_formed_is_left_where_it_is(line: bytes) -> None:
    raw = BARE + b"\r\n" + line
    assert split_marks(raw) == (raw, None)


def test_the_first_line_is_no_header() -> None:
    assert split_marks(b"x-request-id: a\r\nhost: a") == (b"x-request-id: a\r\nhost: a", None)


_LINES = st.lists(
    st.sampled_from(
        [
            *(
                b"x-request-id: a",
                b"X-Request-Id:b ",
                b"x-request-id: \x00",
                b"traceparent: " + PARENT,
                b"tracestate: k=v",
            ),
            *(b"content-length: 3", b"content-length: 4", b"transfer-encoding: chunked", b" folded", b"\tfolded: a"),
            *(b"connection: close", b"expect: 100-continue", b"authorization: x", b"a: b\rc", b"a: b\nd: e", b": a"),
        ]
    ),
    max_size=6,
)


@given(_LINES)
def test_a_head_means_the_same_without_its_marks(lines: list[bytes]) -> None:
    """Else a request could be taken for another one that was looked at before."""
    raw = b"\r\n".join([BARE, *lines])
    rest, marks = split_marks(raw)
    whole, short = (read_head(text + b"\r\n\r\n") for text in (raw, rest))
    assert marks is None or rest != raw
    for name in ("method", "path", "length", "keep", "expects", "old", "refusal"):
        assert getattr(whole, name) == getattr(short, name), (name, raw, rest)
    own = {b"x-request-id", b"traceparent", b"tracestate"} if marks else set[bytes]()
    assert {n: v for n, v in whole.headers.items() if n not in own} == short.headers


class Kept:
    """A sink that keeps everything; ``hold``: until it is set, it is held up."""

    def __init__(self) -> None:
        self.notes: list[RequestNotes] = []
        self.hold = threading.Event()
        self.hold.set()
        self.closed = False

    def write(self, ended: Sequence[RequestNotes]) -> None:
        self.hold.wait(20)
        self.notes += ended

    def close(self) -> None:
        self.closed = True


def id_of(head: bytes) -> str:
    return head.decode().partition("x-request-id: ")[2].partition("\r\n")[0]


def test_the_caller_s_id_comes_back_and_a_head_is_known_whatever_its_id() -> None:
    async def scene(echo: Echo, connect: Any) -> None:
        client = await connect()
        for number in range(5):
            client.send(POST + b"content-length: 1\r\nx-request-id: call/%d\r\n\r\n1" % number)
            status, head, _ = await client.answer()
            assert (status, id_of(head)) == (200, f"call/{number}")
        assert len(echo.heads.heads) == 1
        client.send(POST + b"content-length: 1\r\n\r\n1")
        assert b"x-request-id" not in (await client.answer())[1], "nobody would know what it stands for"
        client.send(POST + b'content-length: 1\r\nx-request-id: <a>"\r\n\r\n1')
        assert b"x-request-id" not in (await client.answer())[1]
        client.send(b"GET /nothing HTTP/1.1\r\nhost: a\r\nx-request-id: lost\r\n\r\n")
        status, head, _ = await client.answer()
        assert (status, id_of(head)) == (404, "lost")
        client.send(POST + b"content-length: 999999999\r\nx-request-id: long\r\n\r\n")
        status, head, _ = await client.answer()
        assert (status, id_of(head)) == (413, "long")

    play(scene)


def test_a_fault_of_ours_is_found_in_the_log_by_its_id(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(echo: Echo, connect: Any) -> None:
        client = await connect()
        client.send(b"GET /fails HTTP/1.1\r\nhost: a\r\n\r\n")
        status, head, _ = await client.answer()
        (record,) = [one for one in caplog.records if one.levelno == logging.ERROR]
        assert status == 500 and len(id_of(head)) == 16
        assert id_of(head) in record.getMessage() and vars(record)["request"] == id_of(head)

    play(scene)


def test_every_request_is_noted_once_however_it_ends() -> None:
    kept = Kept()

    async def scene(echo: Echo, connect: Any) -> None:
        echo.watch = watch = RequestWatch([kept])
        client, leaver = await connect(), await connect()
        client.send(POST + b"content-length: 1\r\n\r\n1" + POST + b"content-length: 1\r\nx-request-id: b\r\n\r\n2")
        ids = [id_of((await client.answer())[1]) for _ in range(2)]
        client.send(b"GET /nothing HTTP/1.1\r\nhost: a\r\n\r\n")
        await client.answer()
        client.send(b"nonsense\r\n\r\n")
        await client.answer()
        leaver.send(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n")
        await asyncio.sleep(0.05)
        reset = struct.pack("ii", 1, 0)  # a client that only stops sending may wait for its answer
        leaver.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        leaver.writer.close()
        await asyncio.sleep(0.25)
        await watch.close()
        found = [(notes.status, notes.head and notes.head.path) for notes in kept.notes]
        assert found == [(200, b"/echo"), (200, b"/echo"), (404, b"/nothing"), (400, None), (LEFT, b"/slow")]
        assert [notes.id.decode() for notes in kept.notes[:2]] == ids and ids[1] == "b"
        assert all(notes.ended >= notes.began for notes in kept.notes)
        assert kept.closed

    play(scene)


def test_who_cannot_keep_up_loses_notes_and_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.telemetry.request_watch, "MOST_WAITING", 10)
    kept = Kept()
    kept.hold.clear()

    async def scene() -> None:
        watch = RequestWatch([kept])
        for _ in range(10):
            for _ in range(10):
                RequestNotes(None, None).end(200, watch)
            watch.tick()
        assert 60 <= watch.lost <= 80, "one batch is being written, another may wait, and one is being filled"
        kept.hold.set()
        await watch.close()
        assert len(kept.notes) == 100 - watch.lost

    asyncio.run(scene())


def test_a_sink_with_a_fault_takes_nothing_from_the_others(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Kept):
        def write(self, ended: Sequence[RequestNotes]) -> None:
            raise KeyError("a fault of ours")

    kept = Kept()

    async def scene() -> None:
        watch = RequestWatch([Broken(), kept])
        watch.done(RequestNotes(None, None))
        await watch.close()

    asyncio.run(scene())
    assert len(kept.notes) == 1 and "1 requests are not in the Broken" in caplog.text


# -- the access log ---------------------------------------------------------------------------------------------
def noted(path: bytes = b"/v2/models/m/infer", status: int = 200, marks: RequestMarks | None = None) -> RequestNotes:
    head = RequestHead(b"POST", path + b"?secret", {b"authorization": b"Bearer secret"}, keep=True)
    head.route = Route(lambda *_: None, "m", infers=True)
    notes = RequestNotes(head, marks)
    notes.version = "3"
    notes.worked(0.001, EngineWork(2, 1, 1000, 2000, 3000, True), 2)
    notes.end(status, None)
    return notes


def test_the_access_log_has_a_line_for_each_request(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    access = AccessLog(str(path))
    access.write([noted(marks=RequestMarks(b"x1")), noted(b'/\xff"\n' + b"a" * 500, 404), RequestNotes(None, None)])
    access.close()
    first, second, third = map(json.loads, path.read_bytes().splitlines())
    assert {**first, "time": "", "ms": 0} == {
        "time": "",
        "id": "x1",
        "key": None,
        "method": "POST",
        "path": "/v2/models/m/infer",
        "model": "m",
        "version": "3",
        "status": 200,
        "ms": 0,
    }
    assert first["time"].startswith(time.strftime("%Y-")) and first["time"].endswith("+00:00") and first["ms"] >= 0
    assert second["status"] == 404 and len(second["path"]) == 200
    assert (third["model"], third["path"]) == (None, None)
    assert b"secret" not in path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) & 0o007 == 0, "paths are not for everybody"


def test_the_access_log_goes_on_in_a_new_file(tmp_path: Path) -> None:
    path, moved = tmp_path / "access.log", tmp_path / "access.log.1"
    access = AccessLog(str(path))
    access.write([noted()])
    path.rename(moved)
    access.write([noted()])
    access.reopen()
    access.write([noted()])
    access.close()
    assert [len(file.read_bytes().splitlines()) for file in (moved, path)] == [2, 1]


def test_a_full_disk_is_said_once_and_the_log_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "access.log"
    access, write, full = AccessLog(str(path)), os.write, [True]

    def half(file: int, data: Any) -> int:
        if not full[0]:
            return write(file, data)
        if len(data) > 40:
            return write(file, data[:-40])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", half)
    access.write([noted()])
    access.write([noted()])
    full[0] = False
    access.write([noted(marks=RequestMarks(b"after"))])
    assert caplog.text.count("No space left") == 1
    assert json.loads(path.read_bytes().splitlines()[-1])["id"] == "after"


# -- traces -----------------------------------------------------------------------------------------------------
def spans_of(monkeypatch: pytest.MonkeyPatch, notes: Sequence[RequestNotes], **environment: str) -> list[Any]:
    with collector() as running:
        for name, value in {"OTEL_EXPORTER_OTLP_ENDPOINT": running.url, **environment}.items():
            monkeypatch.setenv(name, value)
        spans = RequestSpans("1")
        spans.write(notes)
        spans.close()
    assert all(resource["service.name"] == "winnow" for resource in running.resources)
    return running.spans


def test_a_span_of_an_inference_request_belongs_to_the_caller_s(monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.time()
    notes = noted(marks=RequestMarks(b"x1", PARENT, b"k=v"))
    other = noted()
    assert other.head is not None
    other.head.route = Route(lambda *_: None, "m")
    (span,) = spans_of(monkeypatch, [notes, other, RequestNotes(None, None)])
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (PARENT[3:35].decode(), PARENT[36:52].decode())
    assert (span.kind, span.name, span.trace_state) == (2, "POST /v2/models/{model}/infer", "k=v")
    assert span.end_time_unix_nano - span.start_time_unix_nano == pytest.approx(
        1e9 * (notes.ended - notes.began), abs=2e3
    )
    assert abs(span.start_time_unix_nano / 1e9 - began) < 1
    assert attributes(span) == {
        "http.request.method": "POST",
        "http.route": "/v2/models/{model}/infer",
        "http.response.status_code": 200,
        "winnow.request_id": "x1",
        "winnow.model": "m",
        "winnow.version": "3",
        "winnow.queue_ms": 1.0,
        "winnow.compute_ms": 6.0,
        "winnow.batch.rows": 2,
        "winnow.batch.requests": 2,
    }


def test_errors_of_ours_are_errors_of_the_span_and_the_client_s_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    found = spans_of(monkeypatch, [noted(status=status) for status in (200, 400, 503)])
    assert [span.status.code for span in found] == [0, 0, 2]
    assert len({span.trace_id for span in found}) == 3


@pytest.mark.parametrize(
    ("sampler", "parent", "count"),
    [
        ("always_off", PARENT, 0),
        ("always_on", PARENT[:-1] + b"0", 1),
        ("parentbased_always_on", PARENT[:-1] + b"0", 0),
        ("parentbased_always_off", PARENT, 1),
        ("parentbased_always_on", b"ff-" + PARENT[3:], 1),
    ],
)
def test_what_is_sampled_is_decided_by_the_standard_s_variables(
    monkeypatch: pytest.MonkeyPatch, sampler: str, parent: bytes, count: int
) -> None:
    notes = noted(marks=RequestMarks(b"", parent))
    assert len(spans_of(monkeypatch, [notes], OTEL_TRACES_SAMPLER=sampler)) == count


def test_a_collector_that_is_down_loses_spans_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr("serving.telemetry.request_spans._LAST_SECONDS", 0.2)
    path = tmp_path / "access.log"

    async def scene() -> float:
        watch = RequestWatch([RequestSpans("1"), AccessLog(str(path))])
        for _ in range(100):
            watch.done(noted())
        began = time.monotonic()
        await watch.close()
        return time.monotonic() - began

    assert asyncio.run(scene()) < serving.telemetry.request_watch._END_SECONDS
    assert len(path.read_bytes().splitlines()) == 100


def test_traces_are_wanted_where_a_collector_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    assert not traces_are_wanted()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318")
    assert traces_are_wanted()
    for name, value in (("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert not traces_are_wanted(), name
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(TracesMisconfigured, match="OTEL_EXPORTER_OTLP_PROTOCOL"):
        traces_are_wanted()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
    assert traces_are_wanted()


# -- lines of the log -------------------------------------------------------------------------------------------
def test_a_line_of_the_log_is_json_whatever_is_in_it() -> None:
    try:
        raise KeyError("a\nb")
    except KeyError:
        record = logging.LogRecord("winnow", logging.ERROR, "", 0, "%s \udc80\n", ("é",), sys.exc_info())
    record.request = "x1"
    line = JsonLines().format(record)
    said = json.loads(line)
    assert "\n" not in line and said["time"].endswith("+00:00")
    assert (said["level"], said["logger"], said["message"], said["request"]) == ("ERROR", "winnow", "é \\udc80\n", "x1")
    assert "KeyError" in said["error"] and "Traceback" in said["error"]


def test_the_form_of_the_log_is_text_or_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINNOW_LOG", "")
    assert log_form() == "text"
    monkeypatch.setenv("WINNOW_LOG", "xml")
    with pytest.raises(ValueError, match="WINNOW_LOG is 'xml'; set it to text or json"):
        log_form()
