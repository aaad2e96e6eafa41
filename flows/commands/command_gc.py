"""``winnow gc``: what takes space and is needed by nobody."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from pathlib import Path

import click

from flows.reaching import reach_store
from model_registry.sizes import size_text


@click.command("gc")
@click.option("--days", type=click.FloatRange(min=0), default=30.0, show_default=True, help="What is younger stays.")
@click.option("--yes", is_flag=True, help="Remove it; without this, it is only counted.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def gc_command(days: float, yes: bool, as_json: bool) -> int:
    """Count, or with --yes remove, what nobody needs any more.

    In the store: results of stages and searches older than --days, which are computed again when they are asked for,
    and files that no record mentions. On disk: the logs of runs older than that. Never a version that was registered or
    ever served, the ledger, or the record of a run.

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


def _old_folders(runs: Path, days: float) -> dict[Path, int]:
    """Folders of runs that nothing was written into for so long, and their bytes."""
    found = {}
    for folder in sorted(runs.iterdir()) if runs.is_dir() else ():
        files = [path for path in folder.rglob("*") if path.is_file()]
        last = max((path.stat().st_mtime for path in files), default=folder.stat().st_mtime)
        if time.time() - last >= days * 86_400:
            found[folder] = sum(path.stat().st_size for path in files)
    return found
