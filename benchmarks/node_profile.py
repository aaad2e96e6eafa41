"""Where two ONNX files of one network spend their time: ``python benchmarks/node_profile.py fp32.onnx int8.onnx``.

Runs both in turns, one thread, batch 1, and adds up what ONNX Runtime's own profiler says of each node of the optimised
graph, by kind of work. The profiler adds some 3 us to every node; the last line says what they take without it. For
the question why a file is not as much faster as its arithmetic is cheaper.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

RUNS = 200
_KERNEL = "_kernel_time"
_ELEMENTS = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(int64)": np.int64}


def main() -> None:
    """Profile the files and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs=2, type=Path, metavar="FILE", help="first the one to compare with")
    parser.add_argument("--runs", type=int, default=RUNS, help="of each file, after a tenth as many to warm up")
    arguments = parser.parse_args()
    if arguments.runs < 10:
        parser.error(f"--runs {arguments.runs}: a median needs at least 10")
    before, after = profiled(arguments.files, arguments.runs)
    print(table(before, after))
    plain = timed(arguments.files, arguments.runs)
    names = " and ".join(file.name for file in arguments.files)
    print(
        f"\n{names} without the profiler: {plain[0]:.0f} and {plain[1]:.0f} us, {plain[0] / plain[1]:.2f} times faster"
    )


def profiled(files: list[Path], runs: int) -> tuple[dict[str, list[float]], ...]:
    """For each file, by kind of work: nodes, and the sum of their median microseconds."""
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / str(number) for number in range(len(files))]
        sessions = [session(file, place) for file, place in zip(files, places, strict=True)]
        in_turns(sessions, runs)
        found = []
        for opened, place in zip(sessions, places, strict=True):
            events = json.loads(Path(opened.end_profiling()).read_text())
            found.append(by_kind(events, kinds(onnx.load(place)), skip=runs // 10))
    return tuple(found)


def timed(files: list[Path], runs: int) -> list[float]:
    """Median microseconds of a run, in turns, without the profiler."""
    return [float(np.median(times[runs // 10 :])) for times in in_turns([session(file, None) for file in files], runs)]


def session(file: Path, profile: Path | None) -> onnxruntime.InferenceSession:
    """The file on one thread, as the endpoint opens it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, f"{profile}-"
        options.optimized_model_filepath = str(profile)
        options.log_severity_level = 3  # it warns that the optimised graph is for this machine alone
    return onnxruntime.InferenceSession(file.read_bytes(), options, providers=["CPUExecutionProvider"])


def in_turns(sessions: list[onnxruntime.InferenceSession], runs: int) -> list[list[float]]:
    """Microseconds of each run of each session."""
    generator = np.random.default_rng(0)
    feeds = [{i.name: sample(i, generator) for i in opened.get_inputs()} for opened in sessions]
    times: list[list[float]] = [[] for _ in sessions]
    for _ in range(runs + runs // 10):
        for number, opened in enumerate(sessions):
            began = time.perf_counter()
            opened.run(None, feeds[number])
            times[number].append(1e6 * (time.perf_counter() - began))
    return times


def sample(wanted: Any, generator: np.random.Generator) -> np.ndarray[Any, Any]:
    """One random row."""
    shape = [1 if not isinstance(side, int) else side for side in wanted.shape]
    return generator.integers(0, 255, shape).astype(_ELEMENTS[wanted.type])


def by_kind(events: list[dict[str, Any]], kinds: dict[str, str], *, skip: int) -> dict[str, list[float]]:
    """Nodes and microseconds of a run, by what they do."""
    durations: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            node, operator = event["name"].removesuffix(_KERNEL), event["args"]["op_name"]
            what = "addition" if operator in ("Add", "QLinearAdd") else f"other: {operator}"
            durations[node, kinds.get(node, what)].append(event["dur"])
    found: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for (_, what), times in durations.items():
        found[what][0] += 1
        found[what][1] += float(np.median(times[skip:]))
    return dict(found)


def kinds(graph: onnx.ModelProto) -> dict[str, str]:
    """What the convolutions of an optimised graph do, by name; other nodes often have none."""
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.graph.initializer}
    found = {}
    for node in graph.graph.node:
        kernel = next((shapes[name] for name in node.input if len(shapes.get(name, ())) == 4), None)
        if node.op_type in ("Conv", "FusedConv", "QLinearConv") and kernel is not None:
            group = next((a.i for a in node.attribute if a.name == "group"), 1)
            what = "depthwise" if group > 1 else "1x1" if kernel[2:] == [1, 1] else "with a larger kernel"
            found[node.name] = f"convolution, {what}"
    return found


def table(before: dict[str, list[float]], after: dict[str, list[float]]) -> str:
    """A line per kind, in Markdown."""
    lines = ["| kind of node | nodes | us | nodes | us | ratio |", "|---|---|---|---|---|---|"]
    for what in sorted({*before, *after}, key=lambda w: -before.get(w, [0, 0])[1]):
        (n, us), (m, after_us) = before.get(what, [0, 0.0]), after.get(what, [0, 0.0])
        ratio = f"{us / after_us:.2f}" if us and after_us else ""
        lines.append(f"| {what} | {n:.0f} | {us:.0f} | {m:.0f} | {after_us:.0f} | {ratio} |")
    sums = [sum(us for _, us in found.values()) for found in (before, after)]
    counts = [sum(n for n, _ in found.values()) for found in (before, after)]
    lines.append(
        f"| **all** | {counts[0]:.0f} | {sums[0]:.0f} | {counts[1]:.0f} | {sums[1]:.0f} | {sums[0] / sums[1]:.2f} |"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
