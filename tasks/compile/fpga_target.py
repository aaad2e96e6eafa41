"""Target fpga: the variant as Verilog, clocked by Verilator, against the answers of ONNX Runtime."""

from __future__ import annotations

import io
import json
import tarfile
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.compile.answer_proof import different
from tasks.compile.clocked_verilog import NAME, Verilog, cells, clocked, sources, write_verilog
from tasks.compile.form_request import FormRequest, MadeForm
from tasks.evidence.number_text import count_text
from tasks.onnx_models.circuit_codes import behind_codes, to_codes
from tasks.onnx_models.fpga_circuit import circuit, refuse_large
from tasks.onnx_models.graph_as_run import as_run
from tasks.onnx_models.integer_network import IntegerNetwork, integer_network

Array = NDArray[Any]
RANDOM_ROWS = 100_000
"""Rows of random bytes that are asked about beside the test split."""
_CLOCK_MHZ = 100.0
"""Of the estimate of times: what a mid-range device of today reaches with such a depth between registers."""


def make_fpga(asked: FormRequest) -> MadeForm:
    """Unroll, build, and clock every row.

    Raises:
        TargetUnsupported: the model is no chain of whole numbers, or too large.
    """
    model, wanted = as_run(asked.file, asked.folder), asked.wanted[0]
    network = integer_network(model)
    codes = to_codes(model, network, asked.inputs[0])
    count = refuse_large(network, codes.shape[1:])
    asked.progress(0.1, f"unrolling {count_text(count)} multiplications")
    verilog = write_verilog(circuit(network, codes.shape[1:]), asked.folder / "rtl")
    asked.progress(0.3, f"building {count_text(verilog.luts)} LUTs for Verilator")
    run = clocked(verilog)
    asked.progress(0.7, f"clocking {len(codes)} test rows and {RANDOM_ROWS} random ones")
    random = np.random.default_rng(asked.seed).integers(0, 256, (RANDOM_ROWS, *codes.shape[1:]), np.uint8)
    random = random.view(codes.dtype)
    truth = behind_codes(model, network, random)
    differing = int(different(floats(network, run(codes)), wanted.reshape(len(codes), -1)).sum())
    differing += int(different(floats(network, run(random)), truth).sum())
    values = wanted.size + truth.size
    fields = {
        "state": "refused" if differing else "proven",
        "reason": f"{count_text(differing)} of {count_text(values)} values differ: {count_text(len(codes))} test rows "
        f"and {count_text(RANDOM_ROWS)} rows of random bytes",
        "rows": len(codes) + RANDOM_ROWS,
        "values": values,
        "differing": differing,
        "device": "Verilator, clock by clock",
        "facts": _facts(verilog, count),
        "versions": {name: version(name) for name in ("da4ml", "onnxruntime")},
    }
    return MadeForm(fields, {"rtl.tar.gz": _packed(verilog, network, codes.shape[1:])})


def floats(network: IntegerNetwork, answers: NDArray[np.int64]) -> Array:
    """The circuit's whole numbers as the model's answers [rows, outputs], float32."""
    each = np.repeat(network.scale, answers.shape[1] // len(network.scale))
    found: Array = (answers - network.zero).astype(np.float32) * each
    return found


def _facts(verilog: Verilog, count: int) -> dict[str, str]:
    nanoseconds = 1e3 * verilog.stages / _CLOCK_MHZ
    facts = {
        "multiplications": count_text(count),
        "LUTs": f"{count_text(verilog.luts)} (da4ml's estimate), no DSPs",
        "registers": f"{count_text(verilog.registers)} bits",
        "latency": f"{verilog.stages} clocks, a row per clock",
        "time": f"an estimate: {nanoseconds:.0f} ns and {_CLOCK_MHZ:.0f} M rows a second at {_CLOCK_MHZ:.0f} MHz",
    }
    if (found := cells(verilog)) is not None:
        facts["cells"] = ", ".join(f"{kind} {count_text(n)}" for kind, n in sorted(found.items())) + " (Yosys, ECP5)"
    return facts


def _packed(verilog: Verilog, network: IntegerNetwork, shape: tuple[int, ...]) -> bytes:
    """The sources, and how bytes go in and out; the same bytes for the same circuit."""
    ports = {
        "top": NAME,
        "inputs": {"shape": list(shape), "type": "int8" if network.signed else "uint8", "port": "model_inp"},
        "outputs": {"port": "model_out", "scale": network.scale.tolist(), "zero": network.zero},
        "clocks": verilog.stages,
    }
    files = {file.name: file.read_bytes() for file in sources(verilog)}
    files["ports.json"] = json.dumps(ports, indent=2).encode()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=6) as archive:
        for name in sorted(files):
            entry = tarfile.TarInfo(f"rtl/{name}")
            entry.size = len(files[name])
            archive.addfile(entry, io.BytesIO(files[name]))
    return buffer.getvalue()
