"""``winnow serve``: the endpoint in the foreground. Needs the base dependencies only."""

from __future__ import annotations

import os
import sys

import click


@click.command(no_args_is_help=False)
@click.option("--host", help="Address to serve on. [default: 127.0.0.1]")
@click.option(
    "--port", type=click.IntRange(0, 65535), help="Port of the data plane; 0 takes a free one. [default: 8080]"
)
@click.option("--admin-port", type=click.IntRange(0, 65535), help="Port of the admin listener. [default: 8081]")
@click.option(
    "--pin",
    "pins",
    multiple=True,
    metavar="MODEL/VERSION@DIGEST",
    help="Serve this version whatever the ledger says; may be given for several models.",
)
def serve_command(host: str | None, port: int | None, admin_port: int | None, pins: tuple[str, ...]) -> None:
    """Serve the champions of the ledger over the Open Inference Protocol V2, until Ctrl-C.

    The store and its keys come from the environment (WINNOW_STORE and the standard AWS variables), the admin token
    from WINNOW_ADMIN_TOKEN; without one nobody can change what is served.
    With --pin, neither a ledger nor MLflow is needed: the store has to hold the version's files alone.

    \b
    Example:
      winnow serve --port 9000
    """
    given: dict[str, str | int | None] = {
        "WINNOW_ENDPOINT_HOST": host,
        "WINNOW_ENDPOINT_PORT": port,
        "WINNOW_ADMIN_PORT": admin_port,
    }
    given["WINNOW_SERVE"] = ",".join(pins) or None
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    environment |= {name: str(value) for name, value in given.items() if value is not None}
    # This process becomes the endpoint: signals reach it, and flows/ imports nothing of serving/.
    os.execve(sys.executable, [sys.executable, "-m", "serving"], environment)
