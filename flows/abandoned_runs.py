"""Flow runs of the worker that nobody carries: it was killed, and so was their process, or there was none yet.

Prefect would show them as running for ever, and they would keep the deployment's one place: every later run would wait.
"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

import httpx

from flows.dead_runs import ANSWER_SECONDS, post_patiently, set_prefect_state
from infra import procfs
from infra.daemon import Daemon, census
from infra.recipes import WORK_POOL
from model_registry.authorization import prefect_authorization

_UNDER_WAY = ["PENDING", "RUNNING", "CANCELLING"]
_CARRIED = "PREFECT__FLOW_RUN_ID="


def end_abandoned_flow_runs(home: Path) -> list[str]:
    """End those that were under way before the present worker of that stack started and have no process, as crashed.

    Returns their names.

    Raises:
        httpx.HTTPError: Prefect does not answer, or refuses.
    """
    worker = Daemon("worker", home).running()
    if worker is None:
        return []
    wanted = {
        "work_pools": {"name": {"any_": [WORK_POOL]}},
        "flow_runs": {"state": {"type": {"any_": _UNDER_WAY}}},
    }
    api, headers = os.environ["PREFECT_API_URL"], prefect_authorization(os.environ)
    with httpx.Client(base_url=api, timeout=ANSWER_SECONDS, headers=headers) as client:
        listed = post_patiently(client, "/flow_runs/filter", wanted).json()
    carried = {procfs.marked(process.pid, _CARRIED) for process in census(home).get("worker", ())}
    ended = []
    for run in listed:
        since = datetime.fromisoformat(run["state"]["timestamp"]).timestamp()
        if run["id"] not in carried and since < worker.since:
            set_prefect_state(run["id"], "CRASHED", "neither its process nor the worker that had it lives")
            ended.append(run["name"])
    return ended
