"""What one front can do at most: its own CPU time per answer, with and without acceptors, in plain text and over TLS.

    python benchmarks/serving/front_ceiling.py --acceptors 0 1 2 --connections 64 --rounds 3 --seconds 4

A front is one process with one busy thread, so a second of a core over its CPU time per answer is what it can answer in
a second where cores are plenty; what the engines and acceptors take beside it is in the last columns. All endpoints are
up at the same time and take turns on loopback; wrk makes the load with one thread.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent.parent))

import psutil

from benchmarks.own_stack import unwind_on_signals
from benchmarks.serving.own_endpoint import own_endpoint, put_into_cache
from benchmarks.serving.serving_load import WRK_SCRIPT
from benchmarks.serving.serving_models import MODELS, ServedModel
from benchmarks.serving.serving_report import print_report, spread

_PARTS = ("front", "acceptors", "engines")
_CERTIFICATE = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True)
class Ceiling:
    """A round: answers, and CPU seconds by part."""

    seconds: float
    answers: int
    front: float
    acceptors: float
    engines: float

    def microseconds(self, part: str) -> float:
        """CPU time of a part per answer."""
        return 1e6 * float(getattr(self, part)) / max(1, self.answers)


def main() -> int:
    """Run it; exit status 1 where an answer was an error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), default="mlp")
    parser.add_argument("--acceptors", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4)
    chosen = parser.parse_args()
    for tool in ("wrk", "openssl"):
        if shutil.which(tool) is None:
            parser.error(f"{tool} is not installed")
    unwind_on_signals()
    found = dict[str, list[Ceiling]]()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="winnow-ceiling-")))
        model = MODELS[chosen.model]
        endpoints = dict(started(stack, folder, model, chosen.acceptors))
        for number in range(chosen.rounds):
            for name in list(endpoints)[:: 1 if number % 2 == 0 else -1]:
                url, process = endpoints[name]
                found.setdefault(name, []).append(one_round(url, process, folder, chosen))
    rows = []
    for name in sorted(found):
        rounds = found[name]
        parts = [spread([each.microseconds(part) for each in rounds], ".1f") for part in _PARTS]
        most = spread([1e6 / each.microseconds("front") for each in rounds], ".0f")
        rows.append((name, spread([each.answers / each.seconds for each in rounds], ".0f"), most, *parts))
    print_report(
        f"What a front can do, {chosen.connections} connections, {chosen.model}, JSON.",
        ("connections held by", "answers/s", "at most, of one front", *(f"CPU us, {part}" for part in _PARTS)),
        rows,
    )
    return 0


def started(
    stack: ExitStack, folder: Path, model: ServedModel, counts: list[int]
) -> Iterator[tuple[str, tuple[str, psutil.Process]]]:
    """Endpoints by what they are, answering: where, and the front's process."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        [*_CERTIFICATE, "-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=127.0.0.1"],
        check=True,
        capture_output=True,
    )
    variant = model.write(folder / "files")
    for secure in (False, True):
        for count in counts:
            home = folder / f"home-{secure}-{count}"
            put_into_cache(home, variant, folder / "files")
            more = {"WINNOW_ENDPOINT_ACCEPTORS": str(count)}
            if secure:
                more |= {"WINNOW_TLS_CERTIFICATE": str(certificate), "WINNOW_TLS_KEY": str(key)}
            served = stack.enter_context(own_endpoint(home, more=more))
            served.serve(variant)
            name = f"{f'acceptors: {count}' if count else 'the front'}, {'TLS' if secure else 'plain'}"
            yield name, (served.url.replace("http:", "https:" if secure else "http:"), served.process)


def one_round(url: str, front: psutil.Process, folder: Path, chosen: argparse.Namespace) -> Ceiling:
    """A round of load."""
    (folder / "body").write_bytes(MODELS[chosen.model].json_body())
    (folder / "load.lua").write_text(WRK_SCRIPT)
    command = ["wrk", "-t1", f"-c{chosen.connections}", f"-d{chosen.seconds}s", "-s", str(folder / "load.lua"), url]
    before = cpu_by_part(front)
    done = subprocess.run(
        command,
        env={**os.environ, "BODY": str(folder / "body"), "JSON_BYTES": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    after = cpu_by_part(front)
    found = re.search(r"FOUND (\d+) (\d+) (\d+) (\d+) (\d+)", done.stdout)
    assert found is not None, done.stdout
    answers, _, _, duration, errors = map(int, found.groups())
    if errors:
        sys.exit(f"{errors} of {answers} answers of {url} were errors")
    return Ceiling(duration / 1e6, answers, *(after[part] - before[part] for part in _PARTS))


def cpu_by_part(front: psutil.Process) -> dict[str, float]:
    """CPU seconds since their start, of the front, its acceptors, and the engines."""
    parts = {"front": sum(front.cpu_times()[:2]), "acceptors": 0.0, "engines": 0.0}
    for process in front.children(recursive=True):
        part = "acceptors" if "serving.acceptors.acceptor_process" in process.cmdline() else "engines"
        parts[part] += sum(process.cpu_times()[:2])
    return parts


if __name__ == "__main__":
    sys.exit(main())
