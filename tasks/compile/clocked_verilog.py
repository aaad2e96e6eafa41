"""A circuit as pipelined Verilog, and that clocked by Verilator."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from da4ml.codegen import VerilogModel
from da4ml.trace.pipeline import to_pipeline
from numpy.typing import NDArray

from tasks.onnx_models.fpga_circuit import Circuit
from tasks.running.errors import TargetUnsupported

NAME = "winnow_net"
"""Of the top module."""
STAGE_DEPTH = 5
"""Adders that a signal passes between two registers, about."""
_BUILD_SECONDS = 1800.0
_RUNTIME = ("verilated.o", "verilated_threads.o")
"""Verilator's own part of a simulation."""


@dataclass(frozen=True)
class Verilog:
    """Its files, and what is known of the circuit."""

    folder: Path
    """``src/`` and in it ``static/``: the sources; ``sim/``: what Verilator needs."""
    model: Any
    luts: int
    """As da4ml estimates them: a look-up table for each bit of an adder."""
    stages: int
    """Clocks from a row to its answer; a new row may come with each."""
    registers: int
    """Bits."""


def write_verilog(circuit: Circuit, folder: Path) -> Verilog:
    """Write the circuit as a pipeline of stages of about equal depth."""
    pipeline = to_pipeline(circuit, STAGE_DEPTH, verbose=False)
    model = VerilogModel(pipeline, NAME, folder, latency_cutoff=STAGE_DEPTH)
    model.write()
    facts = json.loads((folder / "metadata.json").read_text())
    for source in (folder / "src").rglob("*.v"):
        _for_older_verilator(source)
    return Verilog(folder, model, round(facts["cost"]), int(facts["latency"]), int(facts["reg_bits"]))


def sources(verilog: Verilog) -> list[Path]:
    """The Verilog files of the circuit itself, the top module last."""
    own = sorted((verilog.folder / "src").glob(f"{NAME}_stage*.v"))
    static = [file for file in sorted((verilog.folder / "src" / "static").glob("*.v")) if file.stem != "lookup_table"]
    return [*static, *own, verilog.folder / "src" / f"{NAME}.v"]


def clocked(verilog: Verilog) -> Any:
    """Build the simulation; a function from rows of whole numbers [rows, inputs] to the answers [rows, outputs].

    Raises:
        TargetUnsupported: Verilator or the compiler refuses it.
    """
    sim = verilog.folder / "sim"
    root = re.search(r"VERILATOR_ROOT\s*=\s*(\S+)", _run(["verilator", "-V"], sim))
    include = Path(root[1]) / "include" if root else Path("/usr/share/verilator/include")
    top = f"{NAME}_wrapper"
    _run(
        [
            "verilator",
            "--cc",
            f"../src/{top}.v",
            "--prefix",
            f"V{top}",
            "-I../src",
            "-I../src/static",
            "-Wno-fatal",
            "--output-split",
            "4000",
            "--output-split-cfuncs",
            "400",
        ],
        sim,
    )
    flags = ["OPT_FAST=-O1", "OPT_SLOW=-O0", "OPT_GLOBAL=-O1", "USER_CPPFLAGS=-fPIC -std=c++17"]
    archive = f"V{top}__ALL.a"
    _run(["make", "-s", "-j2", "-f", f"V{top}.mk", *flags, archive, *_RUNTIME], sim / "obj_dir")
    library = sim / f"lib{top}_built.so"
    parts = [f"obj_dir/{part}" for part in (archive, *_RUNTIME)]
    _run(
        [
            "g++",
            "-std=c++17",
            "-fPIC",
            "-O1",
            "-I./obj_dir",
            f"-I{include}",
            "-I../src",
            "-pthread",
            "-shared",
            "-o",
            library.name,
            f"{top}_binder.cc",
            *parts,
        ],
        sim,
    )
    verilog.model._lib = ctypes.CDLL(str(library))

    def run(rows: NDArray[Any]) -> NDArray[np.int64]:
        answers = verilog.model.predict(rows.reshape(len(rows), -1).astype(np.float64), n_threads=1)
        return np.asarray(answers, np.int64)

    return run


def cells(verilog: Verilog) -> dict[str, int] | None:
    """What Yosys makes of it for a Lattice ECP5, by kind of cell; None where Yosys is not installed.

    Raises:
        TargetUnsupported: Yosys refuses it.
    """
    if shutil.which("yosys") is None:
        return None
    read = " ".join(str(file) for file in sources(verilog))
    script = f"read_verilog -sv {read}; synth_ecp5 -top {NAME}; stat"
    told = _run(["yosys", "-q", "-p", script.replace("; stat", "; tee -o cells.txt stat")], verilog.folder)
    text = (verilog.folder / "cells.txt").read_text() or told
    return {kind: int(number) for kind, number in re.findall(r"^\s+([A-Z][A-Z0-9_]+)\s+(\d+)$", text, re.MULTILINE)}


def _for_older_verilator(source: Path) -> None:
    """Debian's Verilator 5.006 knows the warning under its older name."""
    text = source.read_text()
    if "WIDTHTRUNC" in text:
        source.write_text(text.replace("WIDTHTRUNC", "WIDTH"))


def _run(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, errors="replace", check=False, timeout=_BUILD_SECONDS
    )
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-8:]
        raise TargetUnsupported(
            f"target fpga: {command[0]} ended with {done.returncode}: " + "\n".join(last), tool=command[0]
        )
    return done.stdout
