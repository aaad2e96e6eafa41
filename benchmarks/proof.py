"""Makes a row of the compression proof again: how small, how fast, how good, and what the search for it cost.

    python benchmarks/proof.py vgg --output proof-vgg.json
    python benchmarks/proof.py all --zero-knob
    python benchmarks/proof.py convnext --zero-knob --peers
    python benchmarks/proof.py --spec my/budget.yaml

``--zero-knob`` takes the row's spec that says nothing but a budget and the minutes; ``all`` makes one row after the
other and ends with a table of them. ``--peers`` lets other tools (NNCF, Olive, ONNX Runtime alone) quantize the same
teacher and measures all files in turns (benchmarks/peers/compare.py).

Trains the row's teacher where it is missing, starts a stack of its own (in ``benchmarks/.winnow/proof`` on free
ports, ended when the proof ends), runs the row's search, then the same again unchanged and with another budget, which
shows what the store saves. The file that it chose and the teacher's lie beside the JSON. What was computed stays in
that folder, so that a proof that was stopped goes on where it was, and a second one shows the wall time of a stored
search: give a fresh ``--home`` to time one from nothing.

Nothing is deployed: a champion of an earlier proof would be one more opponent. The tables go to standard output in
Markdown, progress to standard error. Exit status: 0 where every goal is reached, 1 where one is not, 2 where there is
no result to judge.
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

HERE = Path(__file__).parent.absolute()
sys.path.append(str(HERE.parent))

from benchmarks.machine_facts import circumstances  # noqa: E402
from benchmarks.own_stack import FolderTaken, OwnStack, own_stack, unwind_on_signals  # noqa: E402
from benchmarks.proof_cost import Run, cost_of, cost_table, run_of, runs_table  # noqa: E402
from benchmarks.proof_goals import ROWS, Goal, Row, count_text, goals_table, judge  # noqa: E402
from benchmarks.proof_result import NothingMeasured, Result, result_of, result_table, speedup_text  # noqa: E402
from tasks.evidence.number_text import points, seconds_text  # noqa: E402
from tasks.report.run_report import RunReport  # noqa: E402
from tasks.report.search_view import control_sentence, search_verdict  # noqa: E402

HOME = HERE / ".winnow" / "proof"
TEACHERS = HERE / "glyphs" / "teachers"
LIBRARIES = ("torch", "onnxruntime", "onnx", "torch-pruning", "numpy", "scikit-learn", "winnow-mlops")
ENDED = ("released", "registered", "refused")
ANOTHER_BUDGET = 1000
"""Bytes more than the chosen file that are allowed in the last run: the same answer to another question."""


class NoProof(RuntimeError):
    """A run ended without a result: it failed, was stopped, or its spec is wrong."""


def main() -> int:
    """Make the row, print its tables, write the JSON."""
    arguments = parse()
    rows = wanted_rows(arguments)
    unwind_on_signals()
    codes = []
    try:
        for row in rows:
            output = arguments.output or output_of(row, arguments)
            try:
                codes.append(prove(row, arguments.home, output, keep=arguments.keep, peers=arguments.peers))
            except (FolderTaken, NoProof, NothingMeasured, subprocess.CalledProcessError) as error:
                print(f"no proof of {row.name}: {error}", file=sys.stderr)
                codes.append(2)
    except KeyboardInterrupt:
        print("interrupted; finished stages are kept, and the same command goes on from them", file=sys.stderr)
        return 130
    if len(rows) > 1:
        made = [output_of(row, arguments) for row, code in zip(rows, codes, strict=True) if code < 2]
        print(f"\n{summary_table([json.loads(file.read_text()) for file in made])}")
    return max(codes)


def output_of(row: Row, arguments: argparse.Namespace) -> Path:
    """Where the JSON of a row goes unless the command line says it."""
    return Path(f"proof-{row.name}{'-zero-knob' if arguments.zero_knob else ''}.json")


def wanted_rows(arguments: argparse.Namespace) -> list[Row]:
    """The rows that the command line names."""
    if arguments.spec:
        return [own_row(arguments.spec)]
    rows = list(ROWS.values()) if arguments.row == "all" else [ROWS[arguments.row]]
    return [row.budget_only or row for row in rows] if arguments.zero_knob else rows


def summary_table(proofs: list[dict[str, Any]]) -> str:
    """A line per row that was made, in Markdown."""
    lines = [
        "| row | smaller | faster (95 %) | loss on the test split (bound) | goals | computing |",
        "|---|---|---|---|---|---|",
    ]
    for proof in proofs:
        result, goals = Result.model_validate(proof["result"]), proof["goals"]
        reached = f"{sum(goal['reached'] for goal in goals)} of {len(goals)}"
        smaller = f"{result.smaller:.1f}×" if result.smaller else "–"
        faster = speedup_text(result.speedup) if result.speedup else "–"
        loss = result.loss
        lost = f"{points(loss.value, result.metric)} ({points(loss.bound, result.metric)})" if loss else "–"
        computing = seconds_text(proof["cost"]["seconds"]) if proof["cost"] else "–"
        lines.append(f"| {proof['row']} | {smaller} | {faster} | {lost} | {reached} | {computing} |")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("row", nargs="?", choices=(*ROWS, "all"))
    what.add_argument("--spec", help="a spec of your own instead: the same tables, without goals")
    parser.add_argument("--zero-knob", action="store_true", help="a budget and nothing else")
    parser.add_argument("--output", type=Path, help="where the JSON goes; the default is proof-ROW.json")
    parser.add_argument("--home", type=Path, default=HOME, help="folder of the stack and of all that was computed")
    parser.add_argument("--keep", action="store_true", help="leave the stack up at the end, to look at its pages")
    parser.add_argument("--peers", action="store_true", help="measure other tools' files beside the chosen one")
    arguments = parser.parse_args()
    if arguments.peers and (arguments.spec or arguments.keep):
        parser.error("--peers knows the data of this file's rows, and nothing may run beside it: no --spec, no --keep")
    if arguments.output and arguments.row == "all":
        parser.error("--output is one file, and all makes one per row: leave it out, or name a row")
    if arguments.zero_knob and arguments.spec:
        parser.error("--zero-knob picks a row's spec, and --spec is one of your own: leave one of them out")
    return arguments


def own_row(spec: str) -> Row:
    """A row without goals; the spec is a file, or the name of one that ships with Winnow."""
    path = Path(spec)
    return Row(path.stem, str(path.absolute()) if path.is_file() else spec)


def prove(row: Row, home: Path, output: Path, *, keep: bool, peers: bool) -> int:
    """Everything about a row; the JSON is written as soon as there is a result, and again with the later runs."""
    proof: dict[str, Any] = {"schema": 1, "row": row.name, "spec": Path(row.spec).name, **circumstances(LIBRARIES)}
    proof |= {"load_before": os.getloadavg()[0], "teacher": teacher(row.teacher) if row.teacher else None}
    pages = home.absolute() / "reports" / row.name
    file = output.with_suffix(".onnx").absolute()
    teachers = output.with_name(f"{output.stem}-teacher.onnx").absolute()
    for old in (file, teachers):
        old.unlink(missing_ok=True)
    with own_stack(home, keep=keep) as stack:
        report, first = run(stack, "search", row.spec, "--report", str(pages))
        result = result_of(report)
        goals = judge(row, result)
        proof |= facts(report, result, goals) | {"runs": [first.model_dump(mode="json")]}
        write(output, proof)
        print_result(row, report, result, goals)
        wanted = {teachers: ("--variant", result.baseline.name)} | ({file: ()} if result.chosen is not None else {})
        for target, options in wanted.items():
            code, _ = stack.relay("pull", report.model, "--run", report.run_id, *options, "-o", str(target))
            if code:
                raise NoProof(f"{target.name} could not be fetched; the search's result is in {output}")
        runs = [first, *later_runs(stack, row, result)]
    proof |= {"runs": [r.model_dump(mode="json") for r in runs], "load_after": os.getloadavg()[0]}
    write(output, proof)
    print(f"\n{runs_table(runs)}\n\n{conditions(proof)}", flush=True)
    if peers:
        proof |= {"peers": beside_peers(row, teachers, file)}
        write(output, proof)
    chosen = f"{file}, " if file.exists() else ""
    print(f"{output}, {chosen}and the pages of the search in {pages}", file=sys.stderr)
    if keep:
        print(f"the stack is up; end it with: WINNOW_HOME={stack.home} winnow down", file=sys.stderr)
    return 0 if all(goal.reached for goal in goals) else 1


def beside_peers(row: Row, fp32: Path, chosen: Path) -> dict[str, Any]:
    """What other tools make of the same teacher, measured beside the chosen file; prints its table."""
    output = chosen.with_name(f"{chosen.stem}-peers.json")
    output.unlink(missing_ok=True)
    also = ["--also", str(chosen)] if chosen.exists() else []
    script = str(HERE / "peers" / "compare.py")
    command = [sys.executable, script, row.name, "--fp32", str(fp32), "--output", str(output), *also]
    if subprocess.run(command, check=False).returncode and not output.exists():
        raise NoProof("the peers could not be measured; the search's result is in its JSON")
    found: dict[str, Any] = json.loads(output.read_text())
    return found


def teacher(network: str) -> dict[str, Any]:
    """Train the row's teacher in a process of its own where it is missing; what its training took and came to."""
    if not (TEACHERS / f"{network}.safetensors").exists():
        print(f"training the teacher {network} ...", file=sys.stderr)
        script = str(HERE / "glyphs" / "teachers.py")
        subprocess.run([sys.executable, script, network], check=True, stdout=sys.stderr)
    record = TEACHERS / f"{network}.json"
    found: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {"network": network}
    return found


def run(stack: OwnStack, what: str, spec: str, *options: str) -> tuple[RunReport, Run]:
    """One run of a spec. A budget that cannot be met is a result too.

    Raises:
        NoProof: it ended in any other way than the gates' yes or no.
    """
    load, began = os.getloadavg()[0], time.monotonic()
    code, answer = stack.relay("run", spec, "--no-deploy", "--json", *options)
    seconds = time.monotonic() - began
    if not answer.strip():
        raise NoProof(f"winnow run {spec} ended with {code} and without a report")
    report = RunReport.model_validate_json(answer)
    if report.status not in ENDED:
        why = f" in stage {report.error.stage}: {report.error.message}" if report.error else ""
        raise NoProof(f"run {report.run_id} {report.status}{why}")
    loads = (load, os.getloadavg()[0])
    return report, run_of(what, report, exit_code=code, wall_seconds=seconds, loads=loads)


def later_runs(stack: OwnStack, row: Row, result: Result) -> list[Run]:
    """The same again, and another budget, where there is a file to set one by."""
    runs = [run(stack, "the same again", row.spec)[1]]
    if result.chosen is not None:
        budget = f"budget.max_bytes={result.chosen.bytes + ANOTHER_BUDGET}"
        runs.append(run(stack, budget, row.spec, "--set", budget)[1])
    return runs


def facts(report: RunReport, result: Result, goals: list[Goal]) -> dict[str, Any]:
    """What the JSON says about the search and its result."""
    judged = [
        goal.model_dump(mode="json", exclude={"metric"})
        | {"reached": goal.reached, "sure": goal.sure, "missing": goal.missing if goal.found is not None else None}
        for goal in goals
    ]
    return {
        "git_commit": report.git_commit,
        "measured_on": report.hardware.model_dump(mode="json") if report.hardware else None,
        "result": result.model_dump(mode="json"),
        "goals": judged,
        "control": dict(report.search.control) if report.search else {},
        "cost": cost_of(report.search).model_dump(mode="json") if report.search else None,
    }


def print_result(row: Row, report: RunReport, result: Result, goals: list[Goal]) -> None:
    """The row, its goals, and what the search cost."""
    sentences = " ".join(text for text in (search_verdict(report), control_sentence(report)) if text)
    parts = [result_table(row.name, result, count_text(goals)), goals_table(goals), sentences]
    parts += [cost_table(cost_of(report.search))] if report.search else []
    print("\n\n".join(part for part in parts if part), flush=True)


def conditions(proof: dict[str, Any]) -> str:
    """The sentence below the tables: machine, versions, load."""
    hardware, versions = proof["hardware"], proof["versions"]
    return (
        f"{proof['date']}, {hardware['cores']} cores of {hardware['cpu']} ({hardware['cpu_class']}), batch "
        f"{proof['result']['batch']}, threads {proof['result']['threads']}, ONNX Runtime {versions['onnxruntime']}, "
        f"torch {versions['torch']}; load average {proof['load_before']:.1f} before, {proof['load_after']:.1f} after."
    )


def write(output: Path, proof: dict[str, Any]) -> None:
    """The JSON, whole or not at all."""
    partial = output.with_name(f".{output.name}")
    partial.write_text(json.dumps(proof, indent=2) + "\n")
    partial.replace(output)


if __name__ == "__main__":
    sys.exit(main())
