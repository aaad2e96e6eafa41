"""Which models the endpoint does not answer for now, and why; ``up`` and ``status`` say it."""

from __future__ import annotations

import json
from collections.abc import Mapping

from infra.component import fetch


def unserved_models(environment: Mapping[str, str]) -> dict[str, str] | None:
    """Why, by model; empty where the endpoint answers for all that it has; None where it says nothing.

    Args:
        environment: as ``Stack.environment`` gives it.
    """
    url = f"{environment['WINNOW_ENDPOINT_ADMIN']}/admin/models"
    headers = {"Authorization": f"Bearer {environment['WINNOW_ADMIN_TOKEN']}"}
    status, body = fetch(url, timeout=2, headers=headers)
    if status != 200:
        return None
    found = {}
    for model in json.loads(body)["models"]:
        serving = [version for version in model["versions"] if version["version"] == model["serving"]]
        if not serving:
            found[model["model"]] = model["reason"]
        elif serving[0]["state"] != "ready":
            found[model["model"]] = f"version {model['serving']} is {serving[0]['state']}: {serving[0]['reason']}"
    return found
