"""Whether memory stays flat over a million requests of mixed shapes, what the server takes, and what a version adds.

    python benchmarks/serving/steady_memory.py --requests 1000000 --most-seconds 900

Requests of 1 to 64 rows in JSON and binary, and some that are refused, by a closed loop. All numbers are PSS: what
several processes share counts in parts, and so less where other programs load ONNX Runtime too. After the first tenth,
memory may grow by 5 %. A second version of the same variant shows what one more costs; what the processes hold is
listed by mapping. The ledger is read from an S3 server of the benchmark's own, and names no model.

Exit status 1 where memory grew, a request was lost, or an answer's status was none of 200 and 400.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent.parent))

import numpy as np
import orjson
import uvloop

from benchmarks.own_stack import unwind_on_signals
from benchmarks.serving.first_answer import s3
from benchmarks.serving.open_loop import LoadClient, http_request
from benchmarks.serving.own_endpoint import MODEL, OwnEndpoint, own_endpoint, process_tree, put_into_cache, until
from benchmarks.serving.process_memory import pss_by_mapping, pss_mb, uss_mb
from benchmarks.serving.serving_models import MODELS, ServedModel
from benchmarks.serving.serving_report import print_report

_PATH = f"/v2/models/{MODEL}/infer"
_MOST_GROWTH = 0.05
_ROWS = (1, 2, 3, 8, 17, 32, 64)
_SAMPLES = 40
_LISTED = 8


def main() -> int:
    """Run it; see above for the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), default="mlp")
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--most-seconds", type=float, default=160.0, help="of load, whatever is missing then")
    parser.add_argument("--connections", type=int, default=16)
    chosen = parser.parse_args()
    unwind_on_signals()
    model = MODELS[chosen.model]
    with tempfile.TemporaryDirectory(prefix="winnow-memory-") as folder:
        home = Path(folder)
        variant = model.write(home / "files")
        put_into_cache(home / "home", variant, home / "files")
        with s3(home / "s3") as reachable, own_endpoint(home / "home", more=reachable) as served:
            until(lambda: expect_ledger_was_read(served))
            time.sleep(1)
            empty = by_part(served)
            served.serve(variant)
            gc.freeze()
            samples, statuses, seconds = uvloop.run(measure(served, model, chosen))
            full, first, held = by_part(served), set(served.engines()), holdings(served)
            served.load(2, variant)
            time.sleep(2)  # its first engine answers already, the others follow
            added = [pid for pid in served.engines() if pid not in first]
            two = by_part(served)
            private = [uss_mb(pid) for pid in added]
    weights = sum(file.size for file in variant.files) / 2**20
    requests = sum(statuses.values())
    growths = {part: growth([sample[part] for sample in samples]) for part in samples[0]}
    rows = [
        (part, *(f"{size:.1f}" for size in (empty[part], samples[0][part], full[part])), f"{100 * grown:+.1f} %")
        for part, grown in growths.items()
    ]
    print_report(
        f"Memory (PSS, MB), {requests} requests in {seconds:.0f} s ({model.name}, {chosen.connections} connections).",
        ("processes", "without a model", "at the first sample", "at the end", "growth after the first tenth"),
        rows,
    )
    each = (two["all"] - full["all"]) / max(1, len(added))
    print(f"\nAnswers by status: {dict(sorted(statuses.items()))}.")
    print(f"One more version: {two['all'] - full['all']:.1f} MB in {len(added)} engines, {each:.1f} each")
    print(f"(private: {max(private):.1f}), with {weights:.1f} MB of weights in each.")
    for part, mappings in held.items():
        largest = mappings.most_common(_LISTED)
        others = mappings.total() - sum(size for _, size in largest)
        listed = ", ".join(f"{name} {size / 1024:.1f}" for name, size in largest)
        print(f"\n{part}: {listed}, others {others / 1024:.1f}")
    return int(growths["all"] > _MOST_GROWTH or set(statuses) != {200, 400})


async def measure(
    served: OwnEndpoint, model: ServedModel, chosen: argparse.Namespace
) -> tuple[list[dict[str, float]], Counter[int], float]:
    """Samples of memory by part, evenly over the load; answers by status; seconds that it took."""
    client = LoadClient(served.port, requests_of(model))
    statuses, samples, began = Counter[int](), list[dict[str, float]](), time.monotonic()
    while (done := sum(statuses.values())) < chosen.requests and time.monotonic() - began < chosen.most_seconds:
        left = min(chosen.requests - done, max(1, chosen.requests // _SAMPLES))
        shots = await client.closed_loop(chosen.connections, chosen.most_seconds / _SAMPLES, most=left)
        statuses.update(shot.status for shot in shots)
        samples.append(await asyncio.to_thread(by_part, served))
    client.close()
    return samples, statuses, time.monotonic() - began


def expect_ledger_was_read(served: OwnEndpoint) -> None:
    """The process that reads it has ended then; raises OSError before."""
    if reason := served.admin("GET", "")["waiting_for"]:
        raise OSError(reason)


def requests_of(model: ServedModel) -> list[bytes]:
    """All shapes in both forms, and some that are refused."""
    draw, found = np.random.default_rng(0), list[bytes]()
    for rows in _ROWS:
        array = np.round(draw.standard_normal((rows, *model.shape)), 4).astype(np.float32)
        tensor = {"name": model.input, "shape": list(array.shape), "datatype": "FP32"}
        numbers = [round(value, 4) for value in array.ravel().tolist()]
        found.append(http_request(_PATH, orjson.dumps({"inputs": [{**tensor, "data": numbers}]})))
        raw = array.tobytes()
        head = orjson.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": len(raw)}}]})
        found.append(http_request(_PATH, head + raw, json_bytes=len(head)))
    wrong = {"name": model.input, "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
    return [*found, http_request(_PATH, orjson.dumps({"inputs": [wrong]})), http_request(_PATH, b'{"inputs": [')]


def by_part(served: OwnEndpoint) -> dict[str, float]:
    """MB of the front, the nursery with what else there is, the engines, and all."""
    engines = set(served.engines())
    sizes = {process.pid: pss_mb(process.pid) for process in process_tree(served.process)}
    parts = {
        "front": sizes.pop(served.process.pid),
        "engines": sum(size for pid, size in sizes.items() if pid in engines),
        "nursery": sum(size for pid, size in sizes.items() if pid not in engines),
    }
    return {**parts, "all": sum(parts.values())}


def holdings(served: OwnEndpoint) -> dict[str, Counter[str]]:
    """By process, KiB by mapping."""
    engines = set(served.engines())
    names = {process.pid: "engine" if process.pid in engines else "nursery" for process in process_tree(served.process)}
    names[served.process.pid] = "front"
    return {f"{name} {pid}": pss_by_mapping(pid) for pid, name in names.items()}


def growth(values: list[float]) -> float:
    """Of the median of the last tenth over that of the second."""
    tenth = max(1, len(values) // 10)
    before, after = values[tenth : 2 * tenth] or values[:1], values[-tenth:]
    return statistics.median(after) / statistics.median(before) - 1


if __name__ == "__main__":
    sys.exit(main())
