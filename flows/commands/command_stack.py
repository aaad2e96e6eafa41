"""``winnow up``, ``down``, ``status``, ``logs``, ``doctor``: the embedded stack on the command line."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from model_registry.sizes import MB, size_text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from flows.commands.stack_status import StackStatus
    from infra.home import Home
    from infra.stack import Stack
    from infra.startup import Event

_COMPONENTS = ("s3", "mlflow", "prefect", "worker", "endpoint")


def _port_options(command: Callable[..., int]) -> Callable[..., int]:
    from infra.ports import PUBLIC

    for port in reversed(PUBLIC):
        command = click.option(
            port.flag,
            f"{port.name}_port",
            type=click.IntRange(1, 65535),
            help=f"Port of {port.owner}. [env: {port.variable}; default: {port.default}]",
        )(command)
    return command


@click.command()
@_port_options
@click.option("--s3", metavar="URL", help="Use the S3 at this URL; `local` for our own. [env: AWS_ENDPOINT_URL_S3]")
@click.option(
    "--mlflow-db",
    metavar="URL",
    help="MLflow's database, like postgresql://user:password@host/mlflow; `sqlite` for a file. [env: WINNOW_MLFLOW_DB]",
)
@click.option("--store", metavar="URI", help="Bucket to keep everything in. [env: WINNOW_STORE; default: s3://winnow]")
def up_command(s3: str | None, mlflow_db: str | None, store: str | None, **ports: int | None) -> int:
    """Start the embedded stack, or what is missing of it, and wait until all of it answers.

    Everything listens on loopback and keeps its data in .winnow (or WINNOW_HOME). Choices are remembered. What dead
    releases and runs left undecided is settled then.

    \b
    Example:
      winnow up
      winnow up --mlflow-port 5001 --prefect-port 4201
    """
    from rich.console import Console
    from rich.markup import escape

    from flows.commands.deployments import deploy_in_background
    from flows.commands.unserved_models import unserved_models
    from infra.stack import Stack

    stack = Stack.from_environment()
    console, begun = Console(), time.monotonic()
    chosen = {name.removesuffix("_port"): port for name, port in ports.items() if port is not None}
    with _Progress(Console(stderr=True)) as progress:
        states = stack.up(ports=chosen, s3=s3, mlflow_db=mlflow_db, store=store, report=progress)
    deploy_in_background(stack)
    _settle(stack)
    console.print(f"The stack is up ({time.monotonic() - begun:.1f} s).")
    for state in states:
        if state.url:
            console.print(f"  {state.title:<24}{state.url}", highlight=False, soft_wrap=True)
    console.print(login_hint(stack.home), highlight=False, soft_wrap=True)
    for model, why in (unserved_models(stack.environment()) or {}).items():
        console.print(f"  [yellow]{escape(model)}[/] is not served yet: {escape(why)}", highlight=False, soft_wrap=True)
    return 0


def login_hint(home: Home) -> str:
    """Who logs in to the pages, and where the password lies; it is never printed."""
    from infra.home import USER

    return (
        f'MLflow asks for the user {USER} and "password" of {home.secrets_file}; '
        f"Prefect for both at once, {USER}:PASSWORD."
    )


def _settle(stack: Stack) -> None:
    import os

    import httpx

    os.environ.update(stack.environment())
    from flows.abandoned_runs import end_abandoned_flow_runs
    from flows.commands.stack_releases import settle_releases
    from flows.dead_runs import mark_dead_runs
    from model_registry.store import Store

    store = Store.from_environment()
    for line in settle_releases(store):
        click.echo(line)
    for run in mark_dead_runs(store):
        click.echo(f"{run.run_id}: its process died; the run is marked as {run.status}")
    try:
        for name in end_abandoned_flow_runs(stack.home.path):
            click.echo(f"flow run {name}: its worker and its process died; it is marked as crashed")
    except httpx.HTTPError as error:  # the stack is up all the same
        click.echo(f"which flow runs were abandoned cannot be told: {error}", err=True)


@click.command()
def down_command() -> int:
    """Stop the embedded stack: every process of it, flow runs of its worker included. Data stays.

    \b
    Example:
      winnow down
    """
    from rich.console import Console

    from infra.stack import Stack

    with _Progress(Console(stderr=True)) as progress:
        ended = Stack.from_environment().down(report=progress)
    count = sum(ended.values())
    click.echo(f"Stopped {', '.join(ended)} ({count} processes)." if ended else "Nothing was running.")
    return 0


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status_command(as_json: bool) -> int:
    """Show components, disk use, champions, pending roll-outs, hand-moved aliases and dead runs.

    Exits 1 when the stack, or a part of it, is down, or the endpoint does not answer for a model.

    \b
    Example:
      winnow status
      winnow status --json
    """
    from flows.commands.stack_status import look_at_stack
    from infra.stack import Stack

    stack = Stack.from_environment()
    found = look_at_stack(stack)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2))
    else:
        _print_status(found)
        if found.up:
            click.echo(f"\n{login_hint(stack.home)}")
    return 0 if found.up and not any(model.unserved for model in found.models) else 1


@click.command()
@click.argument("component", required=False, type=click.Choice([*_COMPONENTS, "deploy"]))
@click.option("-n", "--lines", type=click.IntRange(0), default=30, show_default=True, help="How many last lines.")
@click.option("-f", "--follow", is_flag=True, help="Go on printing as lines come, until Ctrl-C.")
def logs_command(component: str | None, lines: int, follow: bool) -> int:
    """Show the last lines of the logs, of one component or of all.

    \b
    Example:
      winnow logs mlflow -n 100
      winnow logs -f
    """
    from infra.logs import follow as follow_logs
    from infra.logs import tail
    from infra.stack import Stack

    names = (component,) if component else _COMPONENTS
    width = max(map(len, names)) if len(names) > 1 else 0

    def show(found: Iterable[tuple[str, str]]) -> None:
        for name, line in found:
            click.echo(f"{click.style(name.ljust(width), fg='cyan')}  {line}" if width else line)

    home = Stack.from_environment().home
    show(tail(home.path, names, lines))
    if follow:
        show(follow_logs(home.path, names))
    return 0


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor_command(as_json: bool) -> int:
    """Check Python, disk, ports, S3, MLflow, Prefect, endpoint, versions and the machine; say how to fix each.

    Exits 1 when a check fails; warnings do not count.

    \b
    Example:
      winnow doctor
      winnow doctor --json
    """
    from flows.commands.stack_doctor import examine
    from infra.stack import Stack

    checks = []
    colour = {"ok": "green", "warn": "yellow", "fail": "red"}
    for check in examine(Stack.from_environment()):
        checks.append(check)
        if not as_json:
            click.echo(
                f"{click.style(check.verdict.ljust(4), fg=colour[check.verdict])}  {check.name:<18} {check.found}"
            )
            if check.remedy:
                click.echo(f"{'':<25}-> {check.remedy}")
    failed = sum(check.verdict == "fail" for check in checks)
    warned = sum(check.verdict == "warn" for check in checks)
    if as_json:
        listed = [{"name": c.name, "verdict": c.verdict, "found": c.found, "remedy": c.remedy} for c in checks]
        click.echo(json.dumps({"schema": 1, "ok": failed == 0, "checks": listed}, indent=2))
    else:
        click.echo(f"{len(checks)} checks, {failed} failed, {warned} warnings.")
    return 1 if failed else 0


class _Progress:
    """A line per component on a terminal, with a clock; elsewhere a lasting line about whatever one has to wait for."""

    def __init__(self, console: Console) -> None:
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description}"),
            TextColumn("[dim]{task.fields[note]}[/]"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Callable[[Event], None]:
        self._progress.start()
        return self._report

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _report(self, event: Event) -> None:
        if self._progress.disable and event.phase in {"waiting", "slow"}:
            click.echo(f"{time.strftime('%H:%M:%S')} {event.text}", err=True)
        name = event.name or "stack"
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=1, note="")
        done = event.phase in {"found", "well", "ended", "failed"}
        notes = {"found": "running", "well": "ready", "slow": "starting", "ended": "stopped"}
        note = notes.get(event.phase, event.phase)
        text = event.text if event.phase in {"waiting", "failed", "ended"} and event.text else note
        self._progress.update(self._tasks[name], completed=1 if done else 0, note=text)


def _print_status(found: StackStatus) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    if found.components:
        console.print(_components_table(found))
    if found.disk:
        parts = ", ".join(f"{name} {size_text(size)}" for name, size in found.disk.items() if size > MB)
        free = f"; {size_text(found.disk_free)} free" if found.disk_free is not None else ""
        total = size_text(sum(found.disk.values()))
        console.print()
        console.print(f"[bold]disk[/]   {escape(found.home)}: {total} ({parts}){free}", highlight=False, soft_wrap=True)
    if found.store:
        usage = found.store_usage
        counted = ", ".join(f"{bucket} {size_text(size)}" for bucket, size in usage.items()) if usage else "not counted"
        console.print(f"[bold]store[/]  {found.store}: {counted}", highlight=False, soft_wrap=True)
    if found.models:
        console.print()
        console.print(_models_table(found))
    remarks = list(_remarks(found))
    if remarks:
        console.print()
    for remark in remarks:
        console.print(remark, highlight=False, soft_wrap=True)


def _components_table(found: StackStatus) -> RenderableType:
    from rich.table import Table

    colour = {"up": "green", "external": "green", "hung": "yellow", "down": "red"}
    table = Table("component", "state", "pid", "memory", "up for", "url", box=None, pad_edge=False, header_style="bold")
    for one in found.components:
        table.add_row(
            one.title,
            f"[{colour[one.state]}]{one.state}[/]",
            str(one.pid or ""),
            size_text(one.rss) if one.rss else "",
            _duration(time.time() - one.since) if one.since else "",
            one.url,
        )
    return table


def _models_table(found: StackStatus) -> RenderableType:
    from rich.table import Table

    table = Table("model", "champion", "digest", "since", box=None, pad_edge=False, header_style="bold")
    for model in found.models:
        table.add_row(
            model.model,
            f"version {model.champion}" if model.champion else "none",
            (model.digest or "")[:12],
            (model.since or "")[:16].replace("T", " "),
        )
    return table


def _remarks(found: StackStatus) -> Iterator[str]:
    """What somebody should know or do, in rich's markup."""
    from rich.markup import escape

    for model in found.models:
        name = escape(model.model)
        if model.pending:
            yield f"[yellow]{name}[/]: {escape(model.pending)} is under way"
        if model.unserved:
            yield f"[red]{name}[/]: not served: {escape(model.unserved)}"
        if model.problem:
            yield f"[red]{name}[/]: {escape(model.problem)}"
        if model.hand_moved:
            alias = f"points to version {model.alias}" if model.alias else "is missing"
            ledger = f"version {model.champion}" if model.champion else "none"
            yield (
                f"[yellow]{name}[/]: MLflow's alias champion {alias}; the ledger says {ledger}, and it decides. "
                "Use `winnow promote` to change the champion"
            )
    for run in found.dead_runs:
        yield f"[yellow]{escape(run)}[/]: the process of this run is gone; run the same spec again to continue it"
    for problem in found.problems:
        yield f"[red]{escape(problem)}[/]"


def _duration(seconds: float) -> str:
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86400
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if hours < 2 else f"{hours:.0f} h" if days < 2 else f"{days:.0f} days"
