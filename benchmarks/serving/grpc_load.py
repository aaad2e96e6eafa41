"""gRPC, ours and PyTriton's: calls per second, latency, and CPU time per answer.

    python benchmarks/serving/grpc_load.py --streams 1 16 64 --rounds 3 --seconds 4

Both serve the same file under the same protocol (raw contents, unary calls), are up at the same time and take turns on
loopback, the order turned round in every second round. The load is a closed loop of that many calls, eight to a
connection, made by grpcio in this process from bytes that were serialized before; CPU time is that of all processes of
a server. PyTriton has an environment of its own, as in ``peers.py``. Exit status 1 where a call failed, or the first
answers of the two differ.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent.parent))

import grpc.aio
import numpy as np
import psutil

from benchmarks.own_stack import unwind_on_signals
from benchmarks.serving.open_loop import quantile
from benchmarks.serving.own_endpoint import MODEL, cpu_seconds, free_port, own_endpoint, put_into_cache
from benchmarks.serving.peers import HERE, PeerMissing, by_server, cpu_us_of, environment, running_peer
from benchmarks.serving.serving_load import Load
from benchmarks.serving.serving_models import MODELS, ServedModel
from benchmarks.serving.serving_report import print_report, spread
from serving.grpc_front.inference_pb2 import ModelInferRequest, ModelInferResponse

_CALL = "/inference.GRPCInferenceService/ModelInfer"
_STREAMS_A_CONNECTION = 8
_OWN_CONNECTIONS = (("grpc.use_local_subchannel_pool", 1),)
_PEER = "pytriton"


@dataclass(frozen=True)
class Listener:
    """A running server; ``port``: of its gRPC."""

    name: str
    process: psutil.Process
    port: int


def main() -> int:
    """Run it; see above for the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("mlp", "cnn"), default="mlp")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--environments", type=Path, default=HERE / ".peers")
    chosen = parser.parse_args()
    unwind_on_signals()
    model, missing = MODELS[chosen.model], ""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="winnow-grpc-")))
        variant = model.write(folder / "files")
        put_into_cache(folder / "home", variant, folder / "files")
        port = free_port()
        ours = stack.enter_context(own_endpoint(folder / "home", more={"WINNOW_GRPC_PORT": str(port)}))
        ours.serve(variant)
        servers = [Listener("winnow", ours.process, port)]
        try:
            peer = stack.enter_context(running_peer(_PEER, environment(_PEER, chosen.environments), model, folder))
            http_port = int(peer.url.split(":")[2].split("/")[0])
            servers.append(Listener(_PEER, peer.process, http_port + 1))
        except PeerMissing as error:
            missing = f"{_PEER}: {error}"
        request = request_of(model)
        answers = [asyncio.run(answer_of(server, request)) for server in servers]
        wrong = [
            s.name for s, found in zip(servers, answers, strict=True) if not np.allclose(found, answers[0], atol=1e-4)
        ]
        loads = [
            under_calls(server, request, streams, chosen.seconds)
            for number in range(chosen.rounds)
            for streams in chosen.streams
            for server in (servers if number % 2 == 0 else servers[::-1])
        ]
    show(loads, chosen)
    for line in (missing, *(f"{name} answers other numbers." for name in wrong)):
        print(line)
    return int(bool(wrong) or any(load.errors for load in loads))


def request_of(model: ServedModel) -> bytes:
    """A serialized request of one row, as raw contents."""
    row = model.row()
    message = ModelInferRequest(model_name=MODEL, raw_input_contents=[row.tobytes()])
    message.inputs.add(name=model.input, datatype="FP32", shape=list(row.shape))
    serialized: bytes = message.SerializeToString()
    return serialized


async def answer_of(server: Listener, request: bytes) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """What it answers, once it does."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        raw: bytes = await channel.unary_unary(_CALL)(request, wait_for_ready=True, timeout=30)
    return np.frombuffer(ModelInferResponse.FromString(raw).raw_output_contents[0], np.float32)


def under_calls(server: Listener, request: bytes, streams: int, seconds: float) -> Load:
    """A round of calls to one server."""
    before, began = cpu_seconds(server.process), time.monotonic()
    times, errors = asyncio.run(closed_loop(server, request, streams, seconds))
    took, spent = time.monotonic() - began, cpu_seconds(server.process) - before
    rate, cpu = len(times) / took, 1e6 * spent / max(1, len(times))
    print(f"{streams} calls, {server.name}: {rate:.0f}/s, {cpu:.0f} us", file=sys.stderr, flush=True)
    p50, p99 = (1e3 * quantile(times, share) for share in (0.5, 0.99))
    return Load(server.name, streams, rate, p50, p99, cpu, 0.0, errors)


async def closed_loop(server: Listener, request: bytes, streams: int, seconds: float) -> tuple[list[float], int]:
    """Seconds of each answered call, and how many failed."""
    times, errors = list[float](), 0
    channels = [
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=_OWN_CONNECTIONS)
        for _ in range(-(-streams // _STREAMS_A_CONNECTION))
    ]
    end = time.monotonic() + seconds

    async def caller(number: int) -> None:
        nonlocal errors
        call = channels[number % len(channels)].unary_unary(_CALL)
        while (began := time.monotonic()) < end:
            try:
                await call(request, timeout=30)
            except grpc.aio.AioRpcError:
                errors += 1
            else:
                times.append(time.monotonic() - began)

    await asyncio.gather(*(caller(number) for number in range(streams)))
    for channel in channels:
        await channel.close()
    return times, errors


def show(loads: list[Load], chosen: argparse.Namespace) -> None:
    """Medians and spread, and which share of PyTriton's CPU time ours is."""
    rows = []
    for streams in chosen.streams:
        found = by_server(loads, streams)
        for server, rounds in found.items():
            share = cpu_us_of(rounds) / cpu_us_of(found[_PEER]) if _PEER in found else float("nan")
            rows.append(
                (
                    streams,
                    server,
                    spread([x.rate for x in rounds], ".0f"),
                    spread([x.p50_ms for x in rounds]),
                    spread([x.p99_ms for x in rounds]),
                    spread([x.cpu_us for x in rounds], ".0f"),
                    f"{share:.2f}",
                    sum(x.errors for x in rounds),
                )
            )
    print_report(
        f"gRPC ({chosen.model}, raw contents), {chosen.rounds} interleaved rounds of {chosen.seconds:g} s.",
        ("calls at a time", "server", "answers/s", "p50 ms", "p99 ms", "CPU us per answer", "of PyTriton's", "errors"),
        rows,
    )


if __name__ == "__main__":
    sys.exit(main())
