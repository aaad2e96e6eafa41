"""gRPC's messages as HTTP bodies, and the connections on which they go to the front."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import numpy as np
import orjson
import pytest

from serving.exceptions import InferenceTimedOut, InvalidRequest, NotReady
from serving.grpc_front import grpc_keeper, grpc_service
from serving.grpc_front.front_link import FrontAnswer, FrontLink
from serving.grpc_front.grpc_keeper import GrpcKeeper
from serving.grpc_front.grpc_order import GrpcOrder
from serving.grpc_front.grpc_process import grpc_server
from serving.grpc_front.grpc_service import GrpcService
from serving.grpc_front.infer_messages import infer_body, infer_response
from serving.grpc_front.inference_pb2 import InferParameter, ModelInferRequest
from serving.limits import RequestLimits
from serving.tensors import NUMPY, bytes_array, to_raw

MEMBERS: dict[str, tuple[str, list[Any]]] = {
    "BOOL": ("bool_contents", [True, False]),
    "INT8": ("int_contents", [-128, 127]),
    "INT16": ("int_contents", [-(1 << 15), 5]),
    "INT32": ("int_contents", [-(1 << 31), 5]),
    "INT64": ("int64_contents", [-(1 << 63), 5]),
    "UINT8": ("uint_contents", [255, 0]),
    "UINT16": ("uint_contents", [65535, 0]),
    "UINT32": ("uint_contents", [(1 << 32) - 1, 0]),
    "UINT64": ("uint64_contents", [(1 << 64) - 1, 0]),
    "FP32": ("fp32_contents", [0.5, -3.0]),
    "FP64": ("fp64_contents", [0.1, -3.0]),
    "BYTES": ("bytes_contents", [b"ab\0", b""]),
}


def asked(datatype: str = "FP32", member: str = "", values: Any = (), **more: Any) -> ModelInferRequest:
    made = ModelInferRequest(model_name="m", **more)
    tensor = made.inputs.add(name="x", datatype=datatype, shape=[2])
    if member:
        getattr(tensor.contents, member).extend(values)
    return made


def with_size(request: ModelInferRequest, size: int) -> ModelInferRequest:
    """With a length of its tensor, as over HTTP."""
    request.inputs[0].parameters["binary_data_size"].int64_param = size
    return request


def split(body: bytes, json_bytes: int) -> tuple[dict[str, Any], bytes]:
    return orjson.loads(body[:json_bytes]), body[json_bytes:]


@pytest.mark.parametrize("datatype", MEMBERS)
def test_typed_contents_become_raw_tensors(datatype: str) -> None:
    member, values = MEMBERS[datatype]
    array = bytes_array(values, (2,)) if datatype == "BYTES" else np.array(values, NUMPY[datatype])
    head, raw = split(*infer_body(asked(datatype, member, values), None, most_elements=2))
    assert raw == to_raw(array)
    (tensor,) = head["inputs"]
    assert tensor == {"name": "x", "datatype": datatype, "shape": [2], "parameters": {"binary_data_size": len(raw)}}
    assert head["parameters"] == {"binary_data_output": True}


def test_every_datatype_but_half_has_typed_contents() -> None:
    assert set(MEMBERS) == set(NUMPY) - {"FP16"}


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (asked("FP16", "fp32_contents", [1, 2]), "'FP16', which has no typed contents; send it in raw_input_contents"),
        (asked("FP32", "fp64_contents", [1, 2]), "must come in fp32_contents or raw_input_contents, got fp64_contents"),
        (asked("FP32"), "got nothing"),
        (asked("INT8", "int_contents", [1, 128]), "a number that does not fit INT8"),
        (asked("FP32", "fp32_contents", [1, 2, 3]), "holds 3 elements, at most 2 may"),
        (asked("FP32", "fp32_contents", [1, 2], raw_input_contents=[bytes(8)]), "contents beside raw_input_contents"),
        (asked(raw_input_contents=[bytes(8), bytes(8)]), "2 tensors for 1 inputs"),
        (asked(raw_input_contents=[bytes(8)], parameters={"a": InferParameter()}), "parameter 'a' has no value"),
        (
            asked(raw_input_contents=[bytes(8)], parameters={"binary_data_output": InferParameter(bool_param=False)}),
            "'binary_data_output' belongs to HTTP",
        ),
        (with_size(asked(raw_input_contents=[bytes(8)]), 7), "'binary_data_size' belongs to HTTP"),
        (with_size(asked("FP32", "fp32_contents", [1, 2]), 8), "'binary_data_size' belongs to HTTP"),
    ],
)
def test_what_the_protocol_forbids_is_refused(request_: ModelInferRequest, text: str) -> None:
    with pytest.raises(InvalidRequest, match=text):
        infer_body(request_, None, most_elements=2)


def test_parameters_of_http_may_say_what_holds_anyway() -> None:
    """KServe's client sends the length of each tensor here too."""
    request = with_size(asked(raw_input_contents=[bytes(8)]), 8)
    request.parameters["binary_data_output"].bool_param = True
    request.outputs.add(name="y").parameters["binary_data"].bool_param = True
    head, raw = split(*infer_body(request, None, most_elements=2))
    assert (head["inputs"][0]["parameters"], raw) == ({"binary_data_size": 8}, bytes(8))
    assert (head["parameters"], head["outputs"]) == ({"binary_data_output": True}, [{"name": "y", "parameters": {}}])


@pytest.mark.parametrize(
    ("seconds", "given", "timeout"),
    [(None, None, None), (0.5, None, 500_000), (0.5, 20, 20), (0.5, 800_000, 500_000), (1e-9, None, 1), (None, 7, 7)],
)
def test_the_sooner_of_deadline_and_timeout_counts(
    seconds: float | None, given: int | None, timeout: int | None
) -> None:
    parameters = {} if given is None else {"timeout": InferParameter(int64_param=given)}
    head, _ = split(*infer_body(asked(raw_input_contents=[bytes(8)], parameters=parameters), seconds, most_elements=2))
    assert head["parameters"].get("timeout") == timeout


def test_an_answer_is_raw_whatever_its_datatype() -> None:
    outputs = [
        {"name": "y", "datatype": "FP32", "shape": [2, 1], "parameters": {"binary_data_size": 8}},
        {"name": "label", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 5}},
    ]
    head = orjson.dumps({"model_name": "m", "model_version": "3", "id": "a", "outputs": outputs})
    found = infer_response(FrontAnswer(200, head + bytes(8) + b"\1\0\0\0k", len(head)))
    assert (found.model_name, found.model_version, found.id) == ("m", "3", "a")
    assert list(found.raw_output_contents) == [bytes(8), b"\1\0\0\0k"]
    assert [(o.name, list(o.shape), o.HasField("contents")) for o in found.outputs] == [
        ("y", [2, 1], False),
        ("label", [1], False),
    ]


def test_an_order_arrives_as_it_was_given() -> None:
    order = GrpcOrder("::1", 8001, RequestLimits(body_bytes=7), certificate="c", certificate_key="k")
    assert GrpcOrder.from_message(order.to_message()) == order
    assert order.address == "[::1]:8001"


# -- connections ------------------------------------------------------------------------------------------------
def talk_to(talk: Callable[[FrontLink], Awaitable[Any]], *connections: list[bytes]) -> tuple[Any, list[bytes]]:
    """What comes of a talk with a front that takes so many connections, answers on each with these, then closes it; and
    what the front read."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    read: list[bytes] = []

    def serve() -> None:
        for answers in connections:
            message, descriptors, _, _ = socket.recv_fds(theirs, 1 << 16, 1)
            if not message:
                return
            with socket.socket(fileno=descriptors[0]) as connection:
                for answer in answers:
                    read.append(connection.recv(1 << 16))
                    for byte in answer:
                        connection.send(bytes([byte]))
                if not answers:
                    connection.recv(1 << 16)
                    connection.recv(1 << 16)  # until it is dropped
        theirs.close()

    async def main() -> Any:
        link = FrontLink(ours)
        try:
            return await talk(link)
        finally:
            link.close()
            await asyncio.sleep(0)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        found = asyncio.run(main())
    finally:
        ours.close()
        thread.join(10)
        theirs.close()
    assert not thread.is_alive()
    return found, read


def http(body: bytes, status: str = "200 OK", lines: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{lines}\r\n".encode() + body


def test_a_connection_is_kept_and_made_again_when_it_was_closed() -> None:
    async def talk(link: FrontLink) -> list[FrontAnswer]:
        key = {"authorization": "Bearer k"}
        first = await link.ask("GET", "/v2", seconds=10)
        second = await link.ask("POST", "/v2/models/m/infer", b"{}ab", seconds=10, headers=key, json_bytes=2)
        return [first, second, await link.ask("GET", "/v2", seconds=10)]  # on another one: the first is closed

    raw = http(b"{}xyz", lines="inference-header-content-length: 2\r\n")
    found, read = talk_to(talk, [http(b"{}"), raw], [http(b'{"error":"no"}', "400 Bad Request")])
    assert found[:2] == [(200, b"{}", -1), (200, b"{}xyz", 2)] and found[2].status == 400
    assert read[1] == (
        b"POST /v2/models/m/infer HTTP/1.1\r\nhost: winnow\r\ncontent-length: 4\r\nauthorization: Bearer k\r\n"
        b"inference-header-content-length: 2\r\n\r\n{}ab"
    )


def test_a_connection_that_is_said_to_close_is_not_used_again() -> None:
    async def talk(link: FrontLink) -> list[bytes]:
        return [(await link.ask("GET", "/v2", seconds=10)).body for _ in range(2)]

    found, read = talk_to(talk, [http(b"1", lines="connection: close\r\n")], [http(b"2")])
    assert found == [b"1", b"2"] and len(read) == 2


@pytest.mark.parametrize("piece", [b"HTTP/1.1 200 OK\r\nContent-Len", b"HTTP/1.1 200 OK\r\nno length: 1\r\n\r\n"])
def test_what_was_answered_in_part_or_unreadably_is_not_asked_again(piece: bytes) -> None:
    async def talk(link: FrontLink) -> None:
        await link.ask("GET", "/v2", seconds=10)
        with pytest.raises(NotReady):
            await link.ask("POST", "/v2/models/m/infer", b"{}", seconds=10)

    _, read = talk_to(talk, [http(b"1"), piece], [http(b"2")])
    assert len(read) == 2


def test_no_answer_in_time_is_said_and_never_taken_for_the_next_one() -> None:
    async def talk(link: FrontLink) -> bytes:
        with pytest.raises(InferenceTimedOut):
            await link.ask("GET", "/v2", seconds=0.05)
        return (await link.ask("GET", "/v2", seconds=10)).body

    assert talk_to(talk, [], [http(b"2")])[0] == b"2"


def test_a_call_that_is_given_up_takes_its_connection_with_it() -> None:
    async def talk(link: FrontLink) -> bytes:
        given_up = asyncio.create_task(link.ask("GET", "/v2", seconds=10))
        await asyncio.sleep(0.05)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        return (await link.ask("GET", "/v2", seconds=10)).body

    assert talk_to(talk, [], [http(b"2")])[0] == b"2"


def test_a_front_that_is_gone_is_said() -> None:
    async def talk(link: FrontLink) -> None:
        await link.ask("GET", "/v2", seconds=10)
        with pytest.raises(NotReady, match="shutting down"):
            await link.ask("GET", "/v2", seconds=10)

    talk_to(talk, [http(b"1")])


@pytest.mark.parametrize("value", ["Bearer k\r\nhost: other", "Bearer \x00", "Bearer ä"])
def test_a_key_cannot_end_its_line(value: str) -> None:
    async def talk(link: FrontLink) -> None:
        with pytest.raises(InvalidRequest, match="printable ASCII"):
            await link.ask("GET", "/v2", seconds=10, headers={"authorization": value})

    talk_to(talk)


# -- calls without a message ------------------------------------------------------------------------------------
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_calls_whose_message_does_not_arrive_are_ended_and_others_wait_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grpc_service, "_MOST_CALLS", 1)

    async def main() -> tuple[list[tuple[grpc.StatusCode, str]], float]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        limits, port = RequestLimits(body_seconds=0.2), free_port()
        server = grpc_server(GrpcOrder("127.0.0.1", port, limits), GrpcService(FrontLink(ours), limits))
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call, began = channel.stream_unary("/inference.GRPCInferenceService/ServerLive"), time.monotonic()
            ended = await asyncio.gather(call(timeout=20), call(timeout=20), return_exceptions=True)
            took = time.monotonic() - began
        await server.stop(0)
        ours.close()
        theirs.close()
        return [(e.code(), str(e.details())) for e in ended if isinstance(e, grpc.aio.AioRpcError)], took

    ended, took = asyncio.run(main())
    assert len(ended) == 2 and took >= 0.4
    for code, text in ended:
        assert code == grpc.StatusCode.DEADLINE_EXCEEDED and "did not arrive within 0.2 s" in text


def test_its_process_ends_with_an_endpoint_that_died_with_something_unread() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    port = free_port()
    command = [sys.executable, "-m", "serving.grpc_front.grpc_process", str(theirs.fileno())]
    with subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=subprocess.DEVNULL) as process:
        theirs.close()
        ours.send(GrpcOrder("127.0.0.1", port, RequestLimits(drain_seconds=0.1)).to_message())
        ours.settimeout(30)
        assert orjson.loads(ours.recv(1 << 16)) == {"ready": True}

        async def ask() -> None:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                call = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"", timeout=10)
                _, descriptors, _, _ = await asyncio.to_thread(socket.recv_fds, ours, 1 << 16, 1)
                other = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"", timeout=10)
                await asyncio.sleep(0.3)  # its request for a connection is not read any more
                ours.close()
                os.close(descriptors[0])
                await asyncio.gather(call, other, return_exceptions=True)

        asyncio.run(ask())
        assert process.wait(20) in (0, 1)


# -- the process ------------------------------------------------------------------------------------------------
SAYS = """
import os, socket, sys
control = socket.socket(fileno=int(sys.argv[1]))
control.recv(1 << 16)
control.send({says!r})
{then}
"""


def test_a_process_that_does_not_live_is_started_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of descriptors, dead at once, refused its port, killed, and then well."""
    monkeypatch.setattr(grpc_keeper, "_FIRST_PAUSE", 0.01)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    programs = [
        "raise SystemExit(3)",
        SAYS.format(says=b'{"error":"the port is taken"}', then=""),
        SAYS.format(says=b'{"ready":true}', then="os.kill(os.getpid(), 9)"),
        SAYS.format(says=b'{"ready":true}', then="control.recv(1)"),
    ]
    start = asyncio.create_subprocess_exec
    environments: list[dict[str, str]] = []

    async def instead(*command: str, **how: Any) -> asyncio.subprocess.Process:
        environments.append(how["env"])
        if len(environments) == 1:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return await start(sys.executable, "-c", programs[len(environments) - 2], command[-1], **how)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", instead)

    async def watch() -> tuple[list[str], dict[str, Any]]:
        keeper = GrpcKeeper(GrpcOrder("127.0.0.1", 1, RequestLimits()), asyncio.Protocol)
        keeping = asyncio.create_task(keeper.keep())
        reasons: list[str] = []
        async with asyncio.timeout(60):
            while keeper.restarts < 4 or keeper.state != "ready":
                if keeper.reason and keeper.reason not in reasons:
                    reasons.append(keeper.reason)
                await asyncio.sleep(0.001)
            found = keeper.describe()
            await keeper.stop(10)
            await keeping
        return reasons, found

    reasons, found = asyncio.run(watch())
    assert reasons == [
        "it is being started",
        "no process can be started: Too many open files",
        "its process ended with status 3",
        "the port is taken",
        "its process ended with SIGKILL",
    ]
    assert (found["state"], found["reason"], found["restarts"]) == ("ready", "", 4)
    assert not any("AWS_SECRET_ACCESS_KEY" in environment for environment in environments)
