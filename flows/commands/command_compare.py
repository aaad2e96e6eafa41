"""``winnow runs``, ``show``, ``compare``, ``pull``: look at what was made, and take a released model away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flows.reaching import reach_store

if TYPE_CHECKING:
    from model_registry.store import Store
    from tasks.report.run_report import RunReport

_COLOURS = {"released": "green", "registered": "green", "running": "cyan", "interrupted": "yellow"}


@click.command("runs")
@click.option(
    "-n", "--limit", type=click.IntRange(1, 500), default=15, show_default=True, help="How many, newest first."
)
@click.option("--model", help="Only runs of this model.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def runs_command(limit: int, model: str | None, as_json: bool) -> int:
    """List recent runs, newest first. A run whose process died without a word is shown as crashed.

    \b
    Example:
      winnow runs
      winnow runs --model digits --json
    """
    from tasks.report.run_records import recent_runs

    found = recent_runs(reach_store(), limit=limit, model=model)
    if as_json:
        _print_json({"schema": 1, "runs": [_line(report) for report in found]})
        return 0
    if not found:
        click.echo("No runs yet. Start one with: winnow run digits")
        return 0
    from rich import box
    from rich.table import Table

    from flows.commands.result_table import open_console
    from tasks.evidence.number_text import seconds_text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for title in ("run", "state", "took", "version", "chosen"):  # the id says when, and which model
        table.add_column(title, no_wrap=title != "chosen", justify="right" if title in ("version", "took") else "left")
    for report in found:
        state = f"[{_COLOURS.get(report.state, 'red')}]{report.state}[/]"
        took = "–" if report.state in ("running", "crashed") else seconds_text(report.seconds)
        chosen = report.row(report.chosen)
        table.add_row(report.run_id, state, took, str(report.version or "–"), chosen.name if chosen else "–")
    open_console().print(table)
    return 0


@click.command("show")
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="Print the run's report as JSON.")
def show_command(run: str, as_json: bool) -> int:
    """Show one run: what became of it, its variants, gates and addresses. RUN is an id, its beginning, or `latest`.

    \b
    Example:
      winnow show latest
      winnow show 20261122-120455-digits-3f9a --json
    """
    report = _find(reach_store(), run)
    if as_json:
        click.echo(report.to_json().decode())
        return 0
    from flows.commands.result_table import print_report, print_stages

    click.echo(f"run {report.run_id}, started {report.started.astimezone():%Y-%m-%d %H:%M}")
    print_report(report)
    print_stages(report)
    return 0


@click.command("compare")
@click.argument("what", metavar="MODEL|RUN")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compare_command(what: str, as_json: bool) -> int:
    """Compare the variants of a run, or of a model's latest run that measured any.

    \b
    Example:
      winnow compare digits
      winnow compare 20261122-120455-digits-3f9a --json
    """
    report = _find(reach_store(), what, measured=True)
    if as_json:
        document = report.model_dump(mode="json", by_alias=True)
        keys = ("schema", "run_id", "model", "metric", "hardware", "conditions", "baseline", "chosen", "variants")
        _print_json({key: document[key] for key in keys})
        return 0
    if not report.variants:
        from tasks.running.errors import WinnowError

        raise WinnowError(
            f"run {report.run_id} ({report.state}) measured no variant; `winnow show {report.run_id}` says why"
        )
    from flows.commands.result_table import print_variants

    click.echo(f"{report.model}, run {report.run_id} ({report.state})")
    print_variants(report)
    return 0


@click.command("pull")
@click.argument("name", metavar="MODEL[@champion]")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="File to write the model to."
)
@click.option(
    "--run", metavar="RUN", help="The file that this run chose, released or not: its id or the beginning of one."
)
@click.option(
    "--variant",
    metavar="NAME",
    help="With --run: that variant instead, by its name in `winnow compare`, or its digest.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def pull_command(name: str, output: Path, run: str | None, variant: str | None, as_json: bool) -> int:
    """Write the champion of MODEL, the ONNX file in service, to a file. Its content is verified against its hash.

    \b
    Example:
      winnow pull digits -o digits.onnx
      winnow pull digits@champion -o digits.onnx --json
      winnow pull digits --run 20261122-031500-digits-3f9a -o digits.onnx
      winnow pull digits --run 20261122-03 --variant teacher.fp32 -o teacher.onnx
    """
    model, at, alias = name.partition("@")
    if not model or (at and (alias != "champion" or run)):
        raise click.UsageError(
            f"{name!r}: give MODEL or MODEL@champion, or MODEL with --run; other versions are in the MLflow registry"
        )
    if variant and not run:
        raise click.UsageError(f"--variant {variant} is one of a run's: name the run with --run RUN")
    store = reach_store()
    digest, version, status = _made_by(store, model, run, variant) if run else _in_service(store, model)
    found = store.load_variant(digest)
    if found.format != "onnx":
        raise click.UsageError(f"{found.name} is no ONNX file but {found.format}")
    store.fetch(found.file("model.onnx"), output)  # through a partial file beside it, verified, then renamed
    if as_json:
        _print_json(
            {
                "schema": 1,
                "model": model,
                "version": version,
                "status": status,
                "digest": found.digest,
                "variant": found.name,
                "bytes": output.stat().st_size,
                "file": str(output),
            }
        )
    else:
        size = output.stat().st_size
        what = f"version {version}" if version else f"of a run that ended as {status}"
        click.echo(f"{output}: {model} {what} ({found.name}), {size} bytes, {found.digest}")
    return 0


def _in_service(store: Store, model: str) -> tuple[str, int | None, str]:
    """Digest, version and status of the champion."""
    from model_registry.ledger import Ledger

    entry = Ledger(store).champion(model)
    if entry is None:
        raise _nothing_released(store, model)
    return entry.digest, entry.to_version, "released"


def _made_by(store: Store, model: str, run: str, name: str | None) -> tuple[str, int | None, str]:
    """Digest, version (None: not registered) and status of what a run chose, or of its variant of that name."""
    from tasks.running.errors import WinnowError

    report = _find(store, run)
    if report.model != model:
        raise WinnowError(f"run {report.run_id} is of the model {report.model!r}, not of {model!r}")
    if name is not None:
        found = sorted({row.digest for row in report.variants if name in (row.name, row.digest)})
        if not found:
            there = ", ".join(row.name for row in report.variants) or "none was measured"
            raise WinnowError(f"run {report.run_id} has no variant {name!r}; it has: {there}")
        if len(found) > 1:
            raise WinnowError(
                f"run {report.run_id} has several variants {name!r}; name one by its digest: {', '.join(found)}"
            )
        return found[0], report.version if found[0] == report.chosen else None, report.state
    if report.chosen is None:
        raise WinnowError(f"run {report.run_id} ({report.state}) chose nothing; `winnow show {report.run_id}` says why")
    return report.chosen, report.version, report.state


def _find(store: Store, what: str, *, measured: bool = False) -> RunReport:
    """The run of that id or beginning of an id, or the latest one of that model, or the ``latest`` of all.

    Args:
        measured: of a model, the latest run that has variants (the latest of all if none has).
    """
    from tasks.report.run_records import find_run
    from tasks.running.errors import WinnowError

    found = find_run(store, what, measured=measured)
    if found is None:
        raise WinnowError(f"no run and no model is called {what!r}; `winnow runs` lists what there is")
    return found


def _nothing_released(store: Store, model: str) -> Exception:
    from model_registry.ledger import Ledger
    from tasks.running.errors import WinnowError

    known = Ledger(store).models()
    hint = f"released models: {', '.join(known)}" if known else "nothing was released yet"
    return WinnowError(f"{model!r} has no champion ({hint}); release one with `winnow run SPEC`")


def _line(report: RunReport) -> dict[str, Any]:
    """One run in the list."""
    chosen = report.row(report.chosen)
    return {
        "run_id": report.run_id,
        "model": report.model,
        "status": report.state,
        "version": report.version,
        "chosen": report.chosen,
        "chosen_name": chosen.name if chosen else None,
        "started": report.started.isoformat(),
        "seconds": report.seconds,
        "error": report.error.type if report.error else None,
    }


def _print_json(document: dict[str, Any]) -> None:
    click.echo(json.dumps(document, ensure_ascii=False, sort_keys=True))
