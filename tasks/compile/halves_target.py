"""Target halves: the variant cut in two, for a model that fits no single machine; proven over a socket, bit by bit."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from model_registry.sizes import size_text
from tasks.compile import second_half
from tasks.compile.answer_proof import different
from tasks.compile.form_request import FormRequest, MadeForm
from tasks.compile.graph_cut import GraphCut, best_cuts, cuts, halves, require_cuts
from tasks.compile.second_half import receive_array, send_array, session
from tasks.evidence.number_text import count_text
from tasks.running.errors import TargetUnsupported

Array = NDArray[Any]
_TRIED = 4
_ROUNDS, _ROUND_SECONDS = 3, 0.4
FILES = ("first.onnx", "second.onnx", "second.py")


def make_halves(asked: FormRequest) -> MadeForm:
    """Cut, and ask two processes about every row.

    Raises:
        TargetUnsupported: there is no place to cut, or none where the bits stay the same.
    """
    model = onnx.load_from_string(asked.file)
    found = best_cuts(require_cuts(cuts(model)))
    reasons = []
    first, second, whole = (asked.folder / name for name in (*FILES[:2], "whole.onnx"))
    whole.write_bytes(asked.file)
    for cut in found[:_TRIED]:
        for path, half in zip((first, second), halves(model, cut), strict=True):
            path.write_bytes(half.SerializeToString(deterministic=True))
        asked.progress(0.2, f"asking two processes, cut at {cut.tensor}")
        with served(second) as port:
            differing = _differing(asked, first, port)
            if differing == 0:
                speed = rates(whole, first, port, _feeds(asked, slice(0, asked.batch)))
                contents = [*(path.read_bytes() for path in (first, second)), Path(second_half.__file__).read_bytes()]
                return MadeForm(_fields(asked, cut, contents, speed), dict(zip(FILES, contents, strict=True)))
        reasons.append(f"{differing} values differ when it is cut at {cut.tensor!r}")
    raise TargetUnsupported(
        f"target halves: ONNX Runtime joins layers over every place tried, so that halves answer otherwise: "
        f"{'; '.join(reasons)}; two replicas of the whole are faster where it fits"
    )


@contextmanager
def served(second: Path) -> Iterator[int]:
    """The second half in a process of its own; its port."""
    process = subprocess.Popen(
        [sys.executable, str(Path(second_half.__file__)), str(second)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline() or 0)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _feeds(asked: FormRequest, rows: slice) -> dict[str, Array]:
    return {spec.name: values[rows] for spec, values in zip(asked.variant.inputs, asked.inputs, strict=True)}


def _differing(asked: FormRequest, first: Path, port: int) -> int:
    """Values that are not those of the whole model."""
    model, differing = session(str(first)), 0
    with socket.create_connection(("127.0.0.1", port)) as line:
        for start in range(0, len(asked.inputs[0]), asked.batch):
            rows = slice(start, start + asked.batch)
            (between,) = model.run(None, _feeds(asked, rows))
            send_array(line, between)
            for truth in asked.wanted:
                answer = receive_array(line)
                if answer is None:
                    raise TargetUnsupported("target halves: the process of the second half died")
                differing += int(different(answer, truth[rows]).sum())
    return differing


def rates(whole: Path, first: Path, port: int, feeds: dict[str, Array]) -> dict[str, float]:
    """Rows per second of one process with the whole model, and of the two halves in a row, by turns.

    The halves have a batch on its way while the next one is computed.
    """
    one, half = session(str(whole)), session(str(first))
    rows = len(next(iter(feeds.values())))
    counted: dict[str, list[float]] = {"whole": [], "halves": []}
    with socket.create_connection(("127.0.0.1", port)) as line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        outputs = len(one.get_outputs())
        for _ in range(_ROUNDS):
            began, done = time.perf_counter(), 0
            while time.perf_counter() - began < _ROUND_SECONDS:
                one.run(None, feeds)
                done += rows
            counted["whole"].append(done / (time.perf_counter() - began))
            began, done, waiting = time.perf_counter(), 0, 0
            while time.perf_counter() - began < _ROUND_SECONDS:
                send_array(line, half.run(None, feeds)[0])
                waiting += 1
                if waiting > 1:
                    _take(line, outputs)
                    waiting, done = waiting - 1, done + rows
            for _ in range(waiting):
                _take(line, outputs)
                done += rows
            counted["halves"].append(done / (time.perf_counter() - began))
    return {name: float(np.median(values)) for name, values in counted.items()}


def _take(line: socket.socket, outputs: int) -> None:
    for _ in range(outputs):
        receive_array(line)


def _fields(asked: FormRequest, cut: GraphCut, contents: Sequence[bytes], speed: dict[str, float]) -> dict[str, Any]:
    values, rows = sum(output.size for output in asked.wanted), len(asked.wanted[0])
    return {
        "state": "proven",
        "reason": f"0 of {count_text(values)} values of {count_text(rows)} test rows differ",
        "rows": rows,
        "values": values,
        "device": "two processes and a socket",
        "facts": {
            "cut": f"at {cut.tensor}, {size_text(cut.row_bytes)} a row from one half to the other",
            "halves": f"{size_text(len(contents[0]))} and {size_text(len(contents[1]))}",
            "rows a second": f"{count_text(round(speed['halves']))} from two processes in a row, "
            f"{count_text(round(speed['whole']))} from one with the whole: where it fits, two replicas are faster",
        },
        "versions": {"onnxruntime": version("onnxruntime")},
    }
