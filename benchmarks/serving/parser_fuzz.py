"""A million damaged requests through both parsers of the endpoint, HTTP and V2: refused by name, or read; memory flat.

    python benchmarks/serving/parser_fuzz.py --inputs 1000000

Seeds are requests of every form; each input is one of them with a few bytes changed, cut out, doubled or taken from
another one, in random pieces. Exit status 1 where anything but a named refusal came out, or memory grew.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent.parent))

import numpy as np
import orjson

from model_registry.variant import TensorSpec
from serving.engines.engine_frames import DEFLATE, GZIP
from serving.engines.packed_body import packed_body, unpacked_body
from serving.engines.quick_request import QuickReader
from serving.exceptions import ServingError
from serving.front.http_head import ByteBudget, HeadTable
from serving.front.request_reader import RequestReader, RequestRefused
from serving.limits import RequestLimits
from serving.protocol import parse_request

LIMITS = RequestLimits()
INPUTS = (TensorSpec(name="x", datatype="FP32", shape=(-1, 4)),)
OUTPUTS = (TensorSpec(name="y", datatype="FP32", shape=(-1, 3)), TensorSpec(name="t", datatype="BYTES", shape=(-1,)))
_HEAD = b"POST /v2/models/m/infer HTTP/1.1\r\nhost: a\r\n"
_ODD = (b"\r\n", b"\0", b"-1", b"99999999999999999999", b"NaN", b"[" * 50, b'"', b"{", b"\xff")
_GROWTH = 64 << 10
"""KiB that the process may grow by while it runs: the tables and pools fill at first."""


def bodies() -> list[tuple[bytes, int]]:
    """Request bodies, with the length of their JSON part, -1 for all."""
    tensor = {"name": "x", "shape": [2, 4], "datatype": "FP32"}
    plain = {"inputs": [{**tensor, "data": [0.5, 1, -2, 1e3, 0, 0, 0, 1]}]}
    long = {"inputs": [{**tensor, "shape": [200, 4], "data": [0.25] * 800}]}
    nested = {**plain, "id": "a", "inputs": [{**tensor, "data": [[1, 2, 3, 4], [5, 6, 7, 8]]}]}
    wishes = {**plain, "parameters": {"timeout": 5, "binary_data_output": True}, "outputs": [{"name": "t"}]}
    head = orjson.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": 32}}]})
    raw = np.ones(8, np.float32).tobytes()
    return [*((orjson.dumps(one), -1) for one in (plain, long, nested, wishes)), (head + raw, len(head)), (raw[:16], 0)]


def requests() -> list[bytes]:
    """Whole HTTP requests."""
    found = []
    for body, json_bytes in bodies():
        more = b"" if json_bytes < 0 else b"inference-header-content-length: %d\r\n" % json_bytes
        found.append(_HEAD + more + b"content-length: %d\r\n\r\n%s" % (len(body), body))
        chunks = b"%x;a=b\r\n%s\r\n0\r\nx: y\r\n\r\n" % (len(body), body)
        found.append(_HEAD + more + b"transfer-encoding: chunked\r\n\r\n" + chunks)
    return [*found, b"GET /v2/health/live HTTP/1.0\r\nconnection: keep-alive\r\n\r\n", found[0] + found[1]]


def damaged(seeds: list[bytes], draw: random.Random) -> bytes:
    """One of the seeds, a little changed."""
    data = bytearray(draw.choice(seeds))
    for _ in range(draw.randrange(4)):
        at = draw.randrange(len(data) + 1)
        kind = draw.randrange(5)
        if kind == 0 and at < len(data):
            data[at] = draw.randrange(256)
        elif kind == 1:
            del data[at : at + draw.randrange(1, 20)]
        elif kind == 2:
            data[at:at] = data[at : at + draw.randrange(1, 40)]
        elif kind == 3:
            other = draw.choice(seeds)
            data[at:] = other[draw.randrange(len(other)) :]
        else:
            data[at:at] = draw.choice(_ODD)
    return bytes(data)


def read_http(data: bytes, draw: random.Random, heads: HeadTable, budget: ByteBudget) -> bool:
    """Whether it was refused."""
    reader = RequestReader(heads, LIMITS, lambda head: None, lambda: None, budget)
    at = 0
    try:
        while at < len(data):
            step = draw.randrange(1, len(data) + 1)
            piece, at = data[at : at + step], at + step
            while piece:
                piece, reader.rest = (reader.rest, b"") if reader.feed(piece) is not None else (b"", b"")
    except RequestRefused:
        return True
    finally:
        reader.stop()
    return False


def read_v2(data: bytes, draw: random.Random, quick: QuickReader) -> bool:
    """Whether it was refused; what the quick way takes the strict one must take too."""
    json_bytes = draw.choice((-1, -1, -1, 0, draw.randrange(len(data) + 2)))
    try:
        if draw.randrange(20) == 0:
            data = unpacked_body(draw.choice((data, packed_body(data))), draw.choice((GZIP, DEFLATE)), LIMITS)
        taken = quick(data, json_bytes)
        taken_whole = taken is not None and quick.array([taken]) is not None
        try:
            parse_request(data, INPUTS, OUTPUTS, LIMITS, json_bytes)
        except ServingError:
            if taken_whole:
                raise AssertionError("the quick way took what the strict one refuses") from None
            raise
    except ServingError:
        return True
    return False


def main() -> int:
    """Run it; exit status 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="of each parser, half of that")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    draw, heads, budget = random.Random(chosen.seed), HeadTable(), ByteBudget(LIMITS.arriving_bytes)
    quick, whole = QuickReader(INPUTS, OUTPUTS, LIMITS), requests()
    parts = [body for body, _ in bodies()]
    refused = {"http": 0, "v2": 0}
    began, first = time.monotonic(), 0
    for number in range(chosen.inputs // 2):
        if number == chosen.inputs // 20:
            first = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for kind in refused:
            data = damaged(whole if kind == "http" else parts, draw)
            try:
                hit = read_http(data, draw, heads, budget) if kind == "http" else read_v2(data, draw, quick)
            except Exception as error:
                print(f"{kind} input {number}: {type(error).__name__}: {error}\n{data[:2000]!r}")
                raise
            refused[kind] += hit
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - first
    left = budget.reserve(LIMITS.arriving_bytes)
    print(
        f"{chosen.inputs} inputs in {time.monotonic() - began:.0f} s, refused {refused}, no other error, memory "
        f"+{grown} KiB, what was reserved came back: {left}"
    )
    return int(grown > _GROWTH or not left)


if __name__ == "__main__":
    sys.exit(main())
