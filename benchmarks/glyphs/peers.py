"""Winnow's int8 files against those of other tools, from the same trained model, on the same rows, in one run.

    python benchmarks/glyphs/teachers.py mobilenet
    python benchmarks/glyphs/peers.py mobilenet --output peers.json

Each tool gets the teacher's fp32 ONNX file and the same 512 calibration rows, those with accuracy control also the same
rows of the validation split and the same allowed drop; they run one after the other, single-threaded, each in an
environment of its own (installed once into ``benchmarks/glyphs/.peers/``). Every file is then measured as Winnow
measures its own: predicted on the 20 000 test images, and timed in turns with the fp32 file (serving/probe.py).
``bytes`` are as the tool wrote the file; ``stripped`` is what Winnow's stripping would leave of it. ``--also
proof-vgg.onnx`` measures what a search chose (``python benchmarks/proof.py vgg``) beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path += [str(HERE.parent.parent), str(HERE)]

from peer_environments import REQUIREMENTS, environment, quiet  # noqa: E402
from peer_measuring import Measuring  # noqa: E402
from peer_table import table  # noqa: E402

PEERS = HERE / ".peers"
DATA = PEERS / "data"


def main() -> int:
    """Make the files, measure them, print the table; exit status 1 where a tool could not be run at all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=("mobilenet", "resnet20", "vgg"))
    parser.add_argument("--output", type=Path, default=Path("peers.json"))
    parser.add_argument("--teacher", type=Path, help="weights; the default is teachers/<network>.safetensors")
    parser.add_argument("--max-drop", type=float, default=0.005, help="that accuracy control accepts on validation")
    parser.add_argument("--validation-rows", type=int, default=4000, help="that accuracy control looks at")
    parser.add_argument("--test-rows", type=int, help="of the test split; the default is all 20 000")
    parser.add_argument("--seconds", type=float, default=6.0, help="of timing per file, fp32 included")
    parser.add_argument("--also", type=Path, action="append", default=[], help="another ONNX file to measure")
    parser.add_argument("--only-measure", action="store_true", help="measure the files that the last run made")
    arguments = parser.parse_args()
    missing = [str(path) for path in arguments.also if not path.is_file()]
    if missing:
        sys.exit(f"--also {', '.join(missing)}: there is no such file")
    teacher = arguments.teacher or HERE / "teachers" / f"{arguments.network}.safetensors"
    if not teacher.exists():
        sys.exit(f"{teacher} is not there: python benchmarks/glyphs/teachers.py {arguments.network}")
    folder = PEERS / arguments.network
    result: dict[str, Any] = {
        "schema": 1,
        "network": arguments.network,
        "date": time.strftime("%Y-%m-%d"),
        "load_before": os.getloadavg(),
        "max_drop": arguments.max_drop,
        "validation_rows": arguments.validation_rows,
    }
    if not arguments.only_measure:
        make_files(arguments.network, teacher, folder, arguments.max_drop, arguments.validation_rows)
    parts = {tool: load(folder / f"peer_{tool}.json") for tool in ("ours", *REQUIREMENTS)}
    result["versions"] = {tool: part.pop("versions") for tool, part in parts.items() if part}
    made = {name: facts for part in parts.values() for name, facts in part.items()}
    with Measuring(DATA, folder / "work", seconds=arguments.seconds, rows=arguments.test_rows) as measuring:
        result["files"] = {"fp32": measuring.measure(folder / "fp32.onnx")}
        files = {name: (folder / f"{name}.onnx", facts) for name, facts in made.items()}
        files |= {path.stem: (path, {}) for path in arguments.also}
        for name, (file, facts) in files.items():
            result["files"][name] = {**facts, **(measuring.measure(file) if "failed" not in facts else {})}
            print(table({name: result["files"][name]}, head=False), flush=True)
        result |= {"hardware": measuring.hardware, "test_rows": measuring.rows}
    result["load_after"] = os.getloadavg()
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\n{table(result['files'])}\n\n{arguments.output}")
    return 0 if all(parts.values()) else 1


def make_files(network: str, teacher: Path, folder: Path, max_drop: float, validation_rows: int) -> None:
    """Have each tool write its files and ``peer_<tool>.json``; one that cannot be installed is named and left out."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in [*folder.glob("*.onnx"), *folder.glob("peer_*.json")]:
        old.unlink()
    run(sys.executable, "peer_inputs.py", [network, str(teacher), str(folder), str(DATA)])
    rows = [str(folder), str(DATA), str(max_drop), str(validation_rows)]
    run(sys.executable, "peer_ours.py", rows)
    for peer in REQUIREMENTS:
        try:
            run(str(environment(peer, PEERS)), f"peer_{peer}.py", rows)
        except subprocess.CalledProcessError as error:
            print(f"{peer} is left out: {error}", file=sys.stderr)


def run(python: str, script: str, arguments: list[str]) -> None:
    """In a folder of its own, since some tools leave caches where they run; what they print is in a log beside it."""
    home = PEERS / "home"
    environment_variables = quiet(home)
    print(f"{script} ...", flush=True)
    with (PEERS / f"{Path(script).stem}.log").open("w") as log:
        command = [python, str(HERE / script), *(str(Path(a).resolve()) if "/" in a else a for a in arguments)]
        subprocess.run(command, check=True, env=environment_variables, cwd=home, stdout=log, stderr=log)


def load(part: Path) -> dict[str, Any]:
    """What a tool wrote about its files; {} if it did not come that far."""
    record: dict[str, Any] = json.loads(part.read_text()) if part.exists() else {}
    return record


if __name__ == "__main__":
    sys.exit(main())
