"""``winnow keys`` and ``winnow audit``: who may ask the endpoint, and what was done to it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import click

from model_registry.api_keys import EVERY_MODEL, Action, KeyFile, KeysUnreadable
from model_registry.audit_log import AuditBroken, verify_audit


def _file() -> KeyFile:
    home = Path(os.environ.get("WINNOW_HOME", ".winnow"))
    return KeyFile(Path(os.environ.get("WINNOW_KEYS") or home / "keys.json"))


@click.group("keys")
def keys_command() -> None:
    """Make, list and end the keys of the endpoint's clients.

    As soon as there is a file of keys, the endpoint answers nobody without one, but for its health. It takes changes
    over while it runs. The file is WINNOW_KEYS, or keys.json in WINNOW_HOME.

    \b
    Example:
      winnow keys add shop
      winnow keys list
    """


@keys_command.command("add")
@click.argument("name")
@click.option("--model", "models", multiple=True, help="A model that it is for; may be repeated. [default: all]")
@click.option(
    "--action",
    "actions",
    multiple=True,
    type=click.Choice(["infer", "read"]),
    help="What it may do: infer (predictions), read (metadata, statistics). [default: both]",
)
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Requests per second. [default: any number]")
@click.option("--burst", type=click.IntRange(min=1), help="Requests at once. [default: those of a second]")
@click.option("--tokens", type=click.FloatRange(min=0, min_open=True), help="Tokens of texts a minute. [default: any]")
@click.option("--exact", is_flag=True, help="Never answer it with a cheaper variant when there is much to do.")
@click.option("--unsampled", is_flag=True, help="Never keep its requests for monitoring.")
@click.option("--days", type=click.FloatRange(min=0, min_open=True), help="Days until it ends. [default: never]")
def keys_add(
    name: str,
    models: tuple[str, ...],
    actions: tuple[Action, ...],
    rate: float | None,
    burst: int | None,
    tokens: float | None,
    exact: bool,
    unsampled: bool,
    days: float | None,
) -> int:
    """Make a key for NAME and print it; it cannot be shown again.

    \b
    Example:
      winnow keys add shop --model digits --rate 50
    """
    try:
        key, text = _file().add(
            name,
            models=models or (EVERY_MODEL,),
            actions=actions or ("infer", "read"),
            rate=rate,
            burst=burst,
            tokens=tokens,
            exact=exact,
            unsampled=unsampled,
            days=days,
        )
    except KeysUnreadable as error:
        raise click.ClickException(str(error)) from error
    click.echo(text)
    click.echo(f"key {key.id} for {name}; clients send it as 'Authorization: Bearer {text[:6]}...'", err=True)
    return 0


@keys_command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def keys_list(as_json: bool) -> int:
    """List the keys; their text is kept nowhere."""
    try:
        found = _file().read()
    except KeysUnreadable as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        keys = [key.model_dump(mode="json", exclude={"digest"}) for key in (found.keys if found else ())]
        click.echo(json.dumps({"schema": 1, "wanted": found is not None, "keys": keys}))
        return 0
    if found is None:
        others = "who has a token of the issuer" if os.environ.get("WINNOW_JWT_KEYS") else "everybody who reaches it"
        click.echo(f"there are no keys: {others} may ask the endpoint")
        return 0
    for key in found.keys:
        rate = "any rate" if key.rate is None else f"{key.rate:g}/s"
        rate += "" if key.tokens is None else f", {key.tokens:g} tokens a minute"
        ends = "" if key.expires is None else time.strftime(", until %Y-%m-%d", time.localtime(key.expires))
        click.echo(f"{key.id}  {key.name}: {', '.join(key.actions)} of {', '.join(key.models)}, {rate}{ends}")
    if not found.keys:
        click.echo("there are no keys any more: nobody may ask the endpoint")
    return 0


@keys_command.command("revoke")
@click.argument("key_id", metavar="ID")
def keys_revoke(key_id: str) -> int:
    """End the key with this ID; a running endpoint refuses it within a second."""
    try:
        gone = _file().revoke(key_id)
    except KeysUnreadable as error:
        raise click.ClickException(str(error)) from error
    if gone is None:
        raise click.ClickException(f"there is no key {key_id}; winnow keys list shows them")
    click.echo(f"ended key {gone.id} of {gone.name}")
    return 0


@click.group("audit")
def audit_command() -> None:
    """What was done to the endpoint by its admin listener: loaded, given the traffic, taken away.

    \b
    Example:
      winnow audit verify
    """


@audit_command.command("verify")
@click.argument("path", required=False, type=click.Path(path_type=Path))
def audit_verify(path: Path | None) -> int:
    """Check that no line of the log was changed, removed or added since it was written."""
    path = path or Path(os.environ.get("WINNOW_HOME", ".winnow")) / "audit.jsonl"
    if not path.exists():
        raise click.ClickException(f"there is no {path}: nothing was done yet")
    try:
        lines, last = verify_audit(path)
    except AuditBroken as error:
        click.echo(str(error), err=True)
        return 1
    click.echo(f"{lines} lines follow from each other; the last hash is {last}")
    return 0
