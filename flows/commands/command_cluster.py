"""``winnow cluster``: a Ray cluster on this machine, for a command."""

from __future__ import annotations

import importlib.util
import os
import subprocess

import click

from flows.reaching import reach_store
from tasks.running.ray_local_cluster import local_cluster


@click.command("cluster", context_settings={"ignore_unknown_options": True})
@click.option("--nodes", type=click.IntRange(min=1, max=16), default=2, show_default=True, help="Nodes, as processes.")
@click.option("--cores", type=click.IntRange(min=1), default=1, show_default=True, help="Cores that a node offers.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def cluster_command(nodes: int, cores: int, command: tuple[str, ...]) -> int:
    """Start a Ray cluster of several nodes on this machine, run a command beside it, and end it.

    To try `place: ray` without a cluster; a real one is what RAY_ADDRESS says. Takes half a minute to start and about
    1 GB of memory.

    \b
    Example:
      winnow cluster --nodes 2 -- winnow run digits_budget --set place=ray --set search.parallel=2
    """
    if importlib.util.find_spec("ray") is None:
        raise click.ClickException("a cluster needs Ray, which is not installed: pip install 'winnow-mlops[ray]'")
    reach_store()  # its variables are in our environment now, and so in that of all nodes
    click.echo(f"starting Ray with {nodes} nodes", err=True)
    with local_cluster(nodes, cores, dict(os.environ)) as cluster:
        click.echo(f"RAY_ADDRESS={cluster.address}", err=True)
        return subprocess.run(command, env={**os.environ, "RAY_ADDRESS": cluster.address}, check=False).returncode
