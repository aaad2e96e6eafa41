"""``winnow run``: one spec, from data to a live endpoint."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from flows.reaching import FOR_A_RUN, reach_stack
from tasks.running.importing import importing
from tasks.running.launch import prewarm

if TYPE_CHECKING:
    from prefect import State
    from rich.console import Console

    from flows.spec import PipelineSpec
    from tasks.report.run_report import RunReport

# A person who pressed Ctrl-C waits at most this long for states and leases to be put in order.
_GRACE_SECONDS = 7.0
_STOPS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


@click.command("run")
@click.argument("spec")
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Change one value of the spec; repeatable.")
@click.option(
    "--report", type=click.Path(file_okay=False, path_type=Path), help="Also write the report to this folder."
)
@click.option(
    "--plan", is_flag=True, help="Say what was read and is learned, and what would be computed, and why; train nothing."
)
@click.option("--no-deploy", is_flag=True, help="Stop after registration; leave the endpoint alone.")
@click.option("--up", is_flag=True, help="Start the embedded stack first if it is down.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def run_command(
    spec: str, overrides: tuple[str, ...], report: Path | None, plan: bool, no_deploy: bool, up: bool, as_json: bool
) -> int:
    """Run the pipeline of SPEC: a YAML file, or the name of a shipped spec (digits, tiny).

    Finished stages are reused, so a run that failed or was stopped continues where it was.

    \b
    Example:
      winnow run digits --report report
      winnow run my/spec.yaml --set prune.ratio=0.3 --plan
    """
    down = _reach_or_start(start=up)  # before Prefect is imported: it reads its settings then
    checked = _mark_of_checked(spec, overrides)
    if down is None and not plan and not checked.exists():
        prewarm("checks")  # the first stage's process imports its libraries while we import ours
    with importing():
        from flows.spec import load_spec

        if down is None:
            import flows.compress  # noqa: F401

    loaded = load_spec(spec, [*overrides, *(["deploy=false"] if no_deploy else [])])
    if down is not None:
        raise down
    os.environ["WINNOW_SPEC"] = shlex.join([spec, *(part for o in overrides for part in ("--set", o))])
    if plan:
        return _print_plan(loaded, as_json)
    return _run(loaded, report, as_json, checked)


def _mark_of_checked(spec: str, overrides: tuple[str, ...]) -> Path:
    """A file that is there where the last run of this very spec left the next one nothing to check.

    Only a guess, which decides no more than whether the checks' process is started ahead.
    """
    text = Path(spec).read_bytes() if Path(spec).is_file() else b""
    asked = hashlib.sha256(json.dumps([spec, *overrides]).encode() + text).hexdigest()[:24]
    return Path(os.environ.get("WINNOW_HOME", ".winnow")).absolute() / "cache" / f"checked-{asked}"


def _remember_checked(report: RunReport, mark: Path) -> None:
    ended = {line.name: line.status for line in report.stages}
    # It took another champion's place: the gates will be asked again, about the same variant and no champion.
    moved = report.status == "released" and report.champion is not None
    if ended.get("data") in {"computed", "reused"} and not moved:
        mark.parent.mkdir(exist_ok=True)
        mark.touch()
    else:
        mark.unlink(missing_ok=True)


def _reach_or_start(*, start: bool) -> Exception | None:
    """Export how to reach the stack; the error if there is none and it was not to be started."""
    from infra.faults import StackDown
    from infra.stack import Stack

    try:
        reach_stack(FOR_A_RUN, remedy="add --up to this command")
    except StackDown as error:
        if not start:
            return error
        Stack.from_environment().up()
        reach_stack(FOR_A_RUN)
    return None


def _print_plan(spec: PipelineSpec, as_json: bool) -> int:
    from flows.compress import plan

    lines = plan(spec)
    if as_json:
        click.echo(json.dumps({"schema": 1, "model": spec.model, "stages": [x.model_dump(mode="json") for x in lines]}))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table("stage", "what", "why", box=None, pad_edge=False, header_style="bold")
    for line in lines:
        style = {"reused": "green", "computed": "yellow"}.get(line.action, "dim")
        table.add_row(line.name, f"[{style}]{line.action}[/]", line.reason)
    console = Console()
    console.print(table)
    for note in [note for line in lines for note in line.notes]:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    return 0


def _run(spec: PipelineSpec, folder: Path | None, as_json: bool, checked: Path) -> int:
    from prefect.exceptions import TerminationSignal
    from rich.console import Console

    from flows.carried_out import read_report, settings_of_a_run, tell_prefect_stopped
    from flows.compress import compress
    from flows.ongoing_run import new_run_id
    from flows.run_progress import progress_lines
    from tasks.running import launch
    from tasks.running.stage_cache import listener, log_folder

    run_id = new_run_id(spec.model)
    console = Console(stderr=True)
    stopping = _stop_on_signals(launch.end_all, lambda: _say(tell_prefect_stopped(run_id)))
    lines = contextlib.nullcontext() if console.is_terminal else progress_lines()
    with lines, settings_of_a_run(), _Progress(console, quiet=not console.is_terminal) as progress:
        token = listener.set(progress.tell)
        state: State[Any] | None = None
        try:
            state = compress(spec, run_id=run_id, return_state=True)
        except (KeyboardInterrupt, TerminationSignal):  # Prefect has SIGTERM to itself while a flow runs
            stopping.set()
        finally:
            listener.reset(token)
    report = read_report(run_id)
    if stopping.is_set() or state is None:
        _say(tell_prefect_stopped(run_id))
        if report is not None and report.status == "released":
            click.echo(f"version {report.version} was released; interrupted before its report was written", err=True)
            return 0
        click.echo(
            f"interrupted; finished stages are kept. Continue with: winnow run {os.environ['WINNOW_SPEC']}", err=True
        )
        return 130
    if report is None:  # it could not even begin: the store or Prefect refused
        state.result()
        return 1
    _remember_checked(report, checked)
    written = log_folder(run_id) / "report"
    if folder is not None and written.is_dir():
        shutil.copytree(written, folder, dirs_exist_ok=True)
    if as_json:
        click.echo(report.to_json().decode())
    else:
        from flows.commands.result_table import print_report

        print_report(report, folder=folder or written)
    if (lost := _lost(state, report)) is not None:
        click.echo(f"and what became of the run could not be shown: {lost}", err=True)
        return 1
    if report.status == "released" and report.endpoint is None:
        return 1  # the ledger has it, the endpoint not yet: its warnings say why
    return 0 if report.status in {"released", "registered"} else _exit_code(report)


def _lost(state: State[Any], report: RunReport) -> str | None:
    """An error that the flow ended with and the report does not tell of: it came while the report was written."""
    error = state.result(raise_on_failure=False) if state.is_failed() and state.name != "Refused" else None
    if not isinstance(error, BaseException) or (report.error and report.error.type == type(error).__name__):
        return None
    return f"{type(error).__name__}: {error}"


def _exit_code(report: RunReport) -> int:
    """2 where what the user gave is wrong, 1 for everything else that fails."""
    from tasks.running.errors import named_errors

    kind = named_errors().get(report.error.type) if report.error else None
    return int(getattr(kind, "exit_code", 1))


def _say(text: str) -> None:
    if text:
        click.echo(text, err=True)


def _stop_on_signals(first: Callable[[], None], last: Callable[[], None]) -> threading.Event:
    """On SIGINT, SIGTERM or SIGHUP: end the children, unwind, and if that hangs, leave all the same.

    Whoever handles the signal: Prefect has SIGTERM to itself while a flow runs, and tells its server first, which may
    take minutes where that hangs. So a thread hears of signals by the wake-up descriptor.
    """
    stopping = threading.Event()
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)

    def leave_later() -> None:
        while _STOPS.isdisjoint(os.read(heard, 64)):
            pass
        time.sleep(_GRACE_SECONDS)
        telling = threading.Thread(target=last, daemon=True)
        telling.start()
        telling.join(timeout=2)  # a server that hangs must not keep us
        sys.stderr.flush()
        os._exit(130)

    def handle(_number: int, _frame: FrameType | None) -> None:
        if stopping.is_set():
            return
        stopping.set()
        first()
        raise KeyboardInterrupt

    threading.Thread(target=leave_later, daemon=True).start()
    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # else it was started to outlive its terminal
        signal.signal(signal.SIGHUP, handle)
    return stopping


class _Progress:
    """A live line per stage, the latest few of those that ended, and a lasting line per step of a search."""

    ENDED_SHOWN = 12

    def __init__(self, console: Console, *, quiet: bool) -> None:
        from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

        self._bars = Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            console=console,
            disable=quiet,
        )
        self._tasks: dict[str, TaskID] = {}
        self._ended: list[TaskID] = []
        self._lock = threading.Lock()

    def __enter__(self) -> _Progress:
        self._bars.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bars.stop()

    def tell(self, name: str, fraction: float, text: str) -> None:
        """Called by the stages, from any thread."""
        with self._lock:
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(name, total=1.0, text=text)
            if fraction >= 1.0 and self._tasks[name] not in self._ended:
                self._ended.append(self._tasks[name])
            if len(self._ended) > self.ENDED_SHOWN:  # a search has hundreds of stages
                self._bars.update(self._ended.pop(0), visible=False)
        if name == "search" and not self._bars.disable:
            self._bars.console.print(text, style="dim", highlight=False, markup=False)
        self._bars.update(self._tasks[name], completed=fraction, text=text)
