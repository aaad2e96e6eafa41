"""Flow runs that Prefect shows and nobody looks at any more: ours, ended, and old."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import httpx

from flows.dead_runs import ANSWER_SECONDS, post_patiently
from model_registry.authorization import prefect_authorization

FLOW = "compress"
_PAGE = 200  # the most that Prefect lists at once
_BATCH = 50  # the most that it deletes at once
_ENDED = ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]


def find_old_flow_runs(*, days: float, now: float) -> list[str]:
    """Ids of our flow's runs that ended so many days before ``now``, in seconds since the epoch.

    Raises:
        httpx.HTTPError: Prefect does not answer, or refuses.
    """
    before = datetime.fromtimestamp(now - days * 86_400, UTC).isoformat()
    wanted: dict[str, Any] = {
        "flows": {"name": {"any_": [FLOW]}},
        "flow_runs": {"state": {"type": {"any_": _ENDED}}, "end_time": {"before_": before}},
        "sort": "ID_DESC",
        "limit": _PAGE,
    }
    found: list[str] = []
    with _client() as client:
        while True:
            page = post_patiently(client, "/flow_runs/filter", {**wanted, "offset": len(found)}).json()
            found += [run["id"] for run in page]
            if len(page) < _PAGE:
                return found


def remove_flow_runs(ids: Sequence[str]) -> None:
    """Delete them with their task runs and logs; those that are gone already are no error."""
    with _client() as client:
        for start in range(0, len(ids), _BATCH):
            some = list(ids[start : start + _BATCH])
            post_patiently(client, "/flow_runs/bulk_delete", {"flow_runs": {"id": {"any_": some}}, "limit": _BATCH})


def _client() -> httpx.Client:
    headers = prefect_authorization(os.environ)
    return httpx.Client(base_url=os.environ["PREFECT_API_URL"], timeout=ANSWER_SECONDS, headers=headers)
