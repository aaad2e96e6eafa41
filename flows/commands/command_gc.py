"""``winnow gc``: what takes space and is needed by nobody."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flows.reaching import reach_store
from model_registry.sizes import size_text

if TYPE_CHECKING:
    from model_registry.store import Store


@click.command("gc")
@click.option("--days", type=click.FloatRange(min=0), default=30.0, show_default=True, help="What is younger stays.")
@click.option("--yes", is_flag=True, help="Remove it; without this, it is only counted.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def gc_command(days: float, yes: bool, as_json: bool) -> int:
    """Count, or with --yes remove, what nobody needs any more.

    In the store: results of stages and searches older than --days, which are computed again when they are asked for,
    files that no record mentions, and sampled requests that were kept for their time. On disk: the logs of runs older
    than --days. In MLflow and Prefect: the rows of runs that ended before that; MLflow's go to its trash, and for good
    once they have lain there as long. Never a version that was registered or ever served, with its run and model in
    MLflow, the ledger, or the record of a run.

    \b
    Example:
      winnow gc
      winnow gc --days 7 --yes
    """
    store = reach_store()
    from flows.dead_runs import mark_dead_runs
    from model_registry.garbage import find_garbage, remove_garbage
    from tasks.report.run_records import recent_runs
    from tasks.running.stage_cache import log_folder

    mark_dead_runs(store)
    garbage = find_garbage(store, days=days, now=time.time())
    folders = _old_folders(log_folder("any").parent, days)
    under_way = [run.run_id for run in recent_runs(store, limit=50) if run.state == "running"]
    if yes and under_way:
        click.echo(f"nothing was removed: {', '.join(under_way)} is under way and may need it; wait for it", err=True)
        return 1
    count, size = Counter[str](), Counter[str]()
    for item in garbage:
        count[item.kind] += 1
        size[item.kind] += item.bytes
    for folder, held in folders.items():
        count["logs of runs"] += 1
        size["logs of runs"] += held
        if yes:
            shutil.rmtree(folder)
    count.update(_clear_views(store, days, remove=yes))
    if yes:
        remove_garbage(store, garbage)
    if as_json:
        kinds = {kind: {"count": count[kind], "bytes": size[kind]} for kind in count}
        click.echo(json.dumps({"schema": 1, "removed": yes, "days": days, "found": kinds}))
        return 0
    for kind in count:
        click.echo(f"{count[kind]:>8}  {size_text(size[kind]):>10}  {kind}")
    what = "removed" if yes else "to be removed by winnow gc --yes" if count else "nothing to remove"
    click.echo(f"{sum(count.values()):>8}  {size_text(sum(size.values())):>10}  {what}")
    return 0


def _clear_views(store: Store, days: float, *, remove: bool) -> dict[str, int]:
    """Count, or remove, old rows of MLflow and Prefect; of one that is away or refuses nothing, which is said."""
    import httpx

    from flows.prefect_garbage import find_old_flow_runs, remove_flow_runs
    from infra.faults import StackError
    from model_registry.garbage import registered_runs
    from model_registry.mlflow_garbage import find_mlflow_garbage, remove_mlflow_garbage
    from model_registry.mlflow_rest import RegistryError

    found, now = dict[str, int](), time.time()
    try:
        if uri := os.environ.get("MLFLOW_TRACKING_URI"):
            rows = find_mlflow_garbage(uri, kept=registered_runs(store), days=days, now=now)
            found |= {"runs in MLflow": len(rows.runs), "models in MLflow": len(rows.models)}
            if remove:
                _empty_trash(store, days)  # of before: what goes there now can be taken back for as long
                remove_mlflow_garbage(uri, rows)
    except (RegistryError, StackError) as error:
        click.echo(f"left out: {error}", err=True)
    try:
        if os.environ.get("PREFECT_API_URL"):
            flow_runs = find_old_flow_runs(days=days, now=now)
            found["flow runs in Prefect"] = len(flow_runs)
            if remove:
                remove_flow_runs(flow_runs)
    except httpx.HTTPError as error:
        click.echo(f"left out: Prefect at {os.environ['PREFECT_API_URL']}: {error}", err=True)
    return {kind: number for kind, number in found.items() if number}


def _empty_trash(store: Store, days: float) -> None:
    """Of the embedded MLflow; another's database is not ours to open."""
    from infra.home import Home
    from infra.mlflow_database import database_url, empty_trash

    home = Home.from_environment()
    if (secrets := home.secrets()) is not None:
        empty_trash(database_url(home.path, secrets.mlflow_db), f"{store.uri}/mlflow", days=days)


def _old_folders(runs: Path, days: float) -> dict[Path, int]:
    """Folders of runs that nothing was written into for so long, and their bytes."""
    found = {}
    for folder in sorted(runs.iterdir()) if runs.is_dir() else ():
        files = [path for path in folder.rglob("*") if path.is_file()]
        last = max((path.stat().st_mtime for path in files), default=folder.stat().st_mtime)
        if time.time() - last >= days * 86_400:
            found[folder] = sum(path.stat().st_size for path in files)
    return found
