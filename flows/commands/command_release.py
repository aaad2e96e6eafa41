"""``winnow promote`` and ``winnow rollback``: change the champion by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from flows.reaching import reach_for_a_release

if TYPE_CHECKING:
    from tasks.release.deployment import Deployment


@click.command("promote")
@click.argument("model")
@click.argument("version", type=click.IntRange(min=1))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def promote_command(model: str, version: int, as_json: bool) -> int:
    """Put VERSION of MODEL into service: any registered version, older or newer than the champion.

    The endpoint loads it beside the champion and must answer its recorded predictions before it gets the traffic.
    If it does not, the champion keeps serving and this command exits with 1. It needs the store and the endpoint only.

    \b
    Example:
      winnow promote digits 3
    """

    def release() -> Deployment:
        from flows.release import promote as flow

        return flow(model, version)

    return _release(release, as_json)


@click.command("rollback")
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def rollback_command(model: str, as_json: bool) -> int:
    """Put the previous champion of MODEL back into service; used again, it goes one further back.

    \b
    Example:
      winnow rollback digits
    """

    def release() -> Deployment:
        from flows.release import rollback as flow

        return flow(model)

    return _release(release, as_json)


def _release(release: Callable[[], Deployment], as_json: bool) -> int:
    reach_for_a_release()
    done = release()
    for warning in done.warnings:
        click.secho("warning: ", fg="yellow", bold=True, err=True, nl=False)
        click.echo(warning, err=True)
    if as_json:
        click.echo(json.dumps({"schema": 1, **done.model_dump(mode="json")}))
    elif not done.served:
        click.echo(f"{done.model} version {done.version} is the champion, and the endpoint does not serve it yet")
    elif not done.changed:
        click.echo(f"{done.model} version {done.version} is the champion already and serves at {done.url}")
    else:
        before = f", before it version {done.previous_version}" if done.previous_version is not None else ""
        click.echo(f"{done.model} version {done.version} is the champion and serves at {done.url}{before}")
    return 0 if done.served else 1
