"""``winnow rollout``: look at a version that takes over the traffic step by step, and have a say in it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, get_args

import click

from flows.reaching import reach_for_a_release
from model_registry.rollout_plan import RolloutAction

if TYPE_CHECKING:
    from model_registry.endpoint_rollout import EndpointRollout, RolloutState
    from model_registry.release_steps import ReleaseStep

_ACTIONS = [action for action in get_args(RolloutAction) if action != "renew"]
_DONE = {
    "pause": "is paused in step",
    "resume": "goes on with step",
    "promote": "is over, and it gets all of the traffic; this was step",
    "abort": "is over, and the old version has all of the traffic; this was step",
}


@click.command("rollout")
@click.argument("action", type=click.Choice(["status", *_ACTIONS]))
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def rollout_command(action: str, model: str, as_json: bool) -> int:
    """Look at the roll-out of MODEL, or pause, resume, promote or abort it.

    A roll-out belongs to the `winnow run` or `winnow promote --rollout` that began it, which sees it through: promote
    and abort tell that process what to do. It ends by itself, and the old version has all of the traffic, where a limit
    of its plan is exceeded or that process is gone.

    \b
    Example:
      winnow rollout status digits
      winnow rollout abort digits
    """
    reach_for_a_release()
    from model_registry.endpoint_client import Endpoint
    from model_registry.endpoint_rollout import EndpointRollout

    with Endpoint.from_environment() as endpoint:
        rollout = EndpointRollout(endpoint, model)
        return _status(rollout, model, as_json) if action == "status" else _act(rollout, model, action, as_json)


def _status(rollout: EndpointRollout, model: str, as_json: bool) -> int:
    state, steps = rollout.state(), _steps(model)
    if as_json:
        said = [step.model_dump(mode="json") for step in steps]
        click.echo(json.dumps({"schema": 1, "rollout": state and state.model_dump(mode="json"), "release_steps": said}))
        return 0
    if state is None and not steps:
        raise click.ClickException(f"{model}: nothing is being rolled out, and nothing ever was released")
    for step in steps:
        click.echo(f"{step.at:%Y-%m-%d %H:%M:%S}  {step.what:<14} {step.detail}".rstrip())
    click.echo(_line(state) if state else f"{model}: nothing is being rolled out")
    return 0


def _act(rollout: EndpointRollout, model: str, action: str, as_json: bool) -> int:
    state = rollout.act(action)  # type: ignore[arg-type]  # click has checked it
    if state is None:
        raise click.ClickException(f"{model}: nothing is being rolled out")
    if as_json:
        click.echo(json.dumps({"schema": 1, "rollout": state.model_dump(mode="json")}))
    else:
        click.echo(f"{model}: the roll-out of version {state.version} {_DONE[action]} {state.steps[state.step]!r}")
    return 0


def _line(state: RolloutState) -> str:
    where = f"step {state.step + 1} of {len(state.steps)}, {state.steps[state.step]}, for {state.step_seconds:.0f} s"
    why = f": {state.why}" if state.why else ""
    return f"version {state.version} beside {state.old}: {state.state}{why}; {where}; {state.seen}"


def _steps(model: str) -> list[ReleaseStep]:
    """Of the latest release."""
    from model_registry.ledger import Ledger
    from model_registry.release_steps import ReleaseSteps
    from model_registry.store import Store

    store = Store.from_environment()
    history = Ledger(store).history(model)
    return ReleaseSteps(store).of(model, history[-1].seq) if history else []
