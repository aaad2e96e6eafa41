"""``winnow promote`` and ``winnow rollback``: change the champion by hand."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from flows.reaching import reach_for_a_release

if TYPE_CHECKING:
    from model_registry.rollout_plan import RolloutPlan
    from tasks.release.deployment import Deployment


@click.command("promote")
@click.argument("model")
@click.argument("version", type=click.IntRange(min=1))
@click.option("--rollout", "gradually", is_flag=True, help="Let it take over the traffic step by step.")
@click.option(
    "--step-seconds",
    type=click.FloatRange(min=0, min_open=True),
    help="With --rollout: how long each step lasts. [default: 30]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def promote_command(model: str, version: int, gradually: bool, step_seconds: float | None, as_json: bool) -> int:
    """Put VERSION of MODEL into service: any registered version, older or newer than the champion.

    The endpoint loads it beside the champion and must answer its recorded predictions before it gets the traffic.
    If it does not, the champion keeps serving and this command exits with 1. It needs the store and the endpoint only.

    With --rollout a part of the requests is first answered by both, and the answers are compared; then growing shares
    of them are answered by VERSION alone (see `winnow rollout`). Where it answers differently, fails or is slow, the
    champion gets all of the traffic back.

    \b
    Example:
      winnow promote digits 3
      winnow promote digits 3 --rollout
    """
    if step_seconds is not None and not gradually:
        raise click.UsageError("--step-seconds goes with --rollout")

    def release() -> Deployment:
        from flows.release import promote as flow

        return flow(model, version, rollout_of(step_seconds) if gradually else None)

    return _release(release, as_json)


def rollout_of(step_seconds: float | None) -> RolloutPlan:
    """The plan, with steps of that length."""
    from model_registry.rollout_plan import RolloutPlan

    return (
        RolloutPlan() if step_seconds is None else RolloutPlan(shadow_seconds=step_seconds, step_seconds=step_seconds)
    )


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


class _Said(logging.Handler):
    """Prints what a release reached; it may take long."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.INFO:  # warnings are printed at the end
            click.secho(record.getMessage(), dim=True, err=True)


def _release(release: Callable[[], Deployment], as_json: bool) -> int:
    reach_for_a_release()
    logging.getLogger("winnow.release").addHandler(_Said(logging.INFO))
    logging.getLogger("winnow.release").setLevel(logging.INFO)
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
