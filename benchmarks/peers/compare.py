"""Winnow's int8 files against those of other tools, from the same trained model, on the same rows, in one run.

    python benchmarks/proof.py convnext --zero-knob --peers
    python benchmarks/peers/compare.py convnext --also proof-convnext-zero-knob.onnx

The second line is what the first one ends with, for files that are there. Each tool (NNCF, Olive, ONNX Runtime alone)
gets the teacher's fp32 ONNX file and the same 512 calibration rows, those with accuracy control also the same rows of
the validation split and the same allowed drop; they run one after the other, single-threaded, each in an environment of
its own (installed once into ``benchmarks/peers/.peers/``). Every file is then measured as Winnow measures its own:
predicted on the test split, and timed in turns with the fp32 file (serving/probe.py). ``bytes`` are as the tool wrote
the file; ``stripped`` is what Winnow's stripping would leave of it. ``--also`` measures what a search chose beside
them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent.absolute()
sys.path += [str(HERE.parent.parent), str(HERE)]

from peer_environments import REQUIREMENTS, environment, quiet  # noqa: E402
from peer_measuring import Measuring  # noqa: E402
from peer_table import table  # noqa: E402

from benchmarks.proof_goals import ROWS  # noqa: E402
from flows.spec import load_spec  # noqa: E402
from model_registry.answering import AnsweringFailed  # noqa: E402
from tasks.workloads.workload import load_workload  # noqa: E402

PEERS = HERE / ".peers"
TOOLS = ("ours", "onnxruntime", *REQUIREMENTS)


def main() -> int:
    """Make the files, measure them, print the table; exit status 1 where a tool could not be run at all."""
    arguments = parse()
    row = ROWS[arguments.row]
    spec = (row.budget_only or row).spec
    folder = PEERS / row.name
    max_drop, relative = row.relative_drop or row.drop or row.margin or 0.01, row.relative_drop is not None
    result: dict[str, Any] = {
        "schema": 1,
        "row": row.name,
        "date": time.strftime("%Y-%m-%d"),
        "load_before": os.getloadavg(),
        "max_drop": max_drop,
        "relative_drop": relative,
        "validation_rows": arguments.validation_rows,
    }
    if not arguments.only_measure:
        rows = arguments.validation_rows
        make_files(spec, arguments.fp32, folder, max_drop=max_drop, relative=relative, validation_rows=rows)
    parts = {tool: load(folder / f"peer_{tool}.json") for tool in TOOLS}
    result["versions"] = {tool: part.pop("versions") for tool, part in parts.items() if part}
    made = {name: facts for part in parts.values() for name, facts in part.items()}
    test, workload = folder / "test.npz", load_workload(load_spec(spec).workload)
    with Measuring(test, workload, folder / "work", seconds=arguments.seconds, rows=arguments.test_rows) as measuring:
        result["files"] = {"fp32": measuring.measure(folder / "fp32.onnx")}
        files = {name: (folder / f"{name}.onnx", facts) for name, facts in made.items()}
        files |= {path.stem: (path, {}) for path in arguments.also}
        for name, (file, facts) in files.items():
            result["files"][name] = {**facts, **(measured(measuring, file) if "failed" not in facts else {})}
            print(table({name: result["files"][name]}, head=False), flush=True)
        result |= {"hardware": measuring.hardware, "test_rows": measuring.rows}
    result["load_after"] = os.getloadavg()
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\n{table(result['files'])}\n\n{arguments.output}")
    return 0 if all(parts.values()) else 1


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", choices=list(ROWS), help="of benchmarks/proof.py: its data, its metric, its budget")
    parser.add_argument("--fp32", type=Path, help="the teacher's ONNX file; the default is what proof.py left here")
    parser.add_argument("--output", type=Path, help="where the JSON goes; the default is peers-ROW.json")
    parser.add_argument("--validation-rows", type=int, default=4000, help="that accuracy control looks at")
    parser.add_argument("--test-rows", type=int, help="of the test split; the default is all")
    parser.add_argument("--seconds", type=float, default=6.0, help="of timing per file, fp32 included")
    parser.add_argument("--also", type=Path, action="append", default=[], help="another ONNX file to measure")
    parser.add_argument("--only-measure", action="store_true", help="measure the files that the last run made")
    arguments = parser.parse_args()
    left = [Path(f"proof-{arguments.row}{end}-teacher.onnx") for end in ("-zero-knob", "")]
    arguments.fp32 = arguments.fp32 or next((file for file in left if file.is_file()), left[0])
    arguments.output = arguments.output or Path(f"peers-{arguments.row}.json")
    needed = [*arguments.also, *([] if arguments.only_measure else [arguments.fp32])]
    if missing := [str(path) for path in needed if not path.is_file()]:
        sys.exit(
            f"there is no file {', '.join(missing)}; `python benchmarks/proof.py {arguments.row} --zero-knob` leaves "
            "the teacher's and the chosen one beside its JSON"
        )
    return arguments


def make_files(spec: str, fp32: Path, folder: Path, *, max_drop: float, relative: bool, validation_rows: int) -> None:
    """Have each tool write its files and ``peer_<tool>.json``; one that cannot be installed is named and left out.

    Args:
        max_drop: what accuracy control may lose of the metric; ``relative``: as a share of it (others than ours control
            the accuracy of classes only).
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in [*folder.glob("*.onnx"), *folder.glob("peer_*.json")]:
        old.unlink()
    shutil.copyfile(fp32, folder / "fp32.onnx")
    rows = [str(max_drop), str(validation_rows)]
    run(sys.executable, "inputs", [spec, str(folder)])
    run(sys.executable, "ours", [str(folder), *rows, spec, *(["--relative"] if relative else [])])
    run(sys.executable, "onnxruntime", [str(folder)])
    for peer in REQUIREMENTS:
        try:
            run(str(environment(peer, PEERS)), peer, [str(folder), *rows])
        except subprocess.CalledProcessError as error:
            print(f"{peer} is left out: {error}", file=sys.stderr)


def run(python: str, script: str, arguments: list[str]) -> None:
    """In a folder of its own, since some tools leave caches where they run; what they print is in a log beside it."""
    home = PEERS / "home"
    environment_variables = quiet(home)
    print(f"{script} ...", flush=True)
    with (PEERS / f"peer_{script}.log").open("w") as log:
        command = [python, str(HERE / f"peer_{script}.py"), *arguments]
        subprocess.run(command, check=True, env=environment_variables, cwd=home, stdout=log, stderr=log)


def measured(measuring: Measuring, file: Path) -> dict[str, Any]:
    """A file that ONNX Runtime refuses is a row of the table, not the end of it."""
    try:
        return measuring.measure(file)
    except AnsweringFailed as error:
        return {"failed": str(error)[:300]}


def load(part: Path) -> dict[str, Any]:
    """What a tool wrote about its files; {} if it did not come that far."""
    record: dict[str, Any] = json.loads(part.read_text()) if part.exists() else {}
    return record


if __name__ == "__main__":
    sys.exit(main())
