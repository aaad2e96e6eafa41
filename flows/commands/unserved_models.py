"""Which models the endpoint does not answer for now, and why, and what it lacks; ``up`` and ``status`` say it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from infra.component import fetch


def unserved_models(environment: Mapping[str, str]) -> dict[str, str] | None:
    """Why, by model; empty where the endpoint answers for all that it has; None where it says nothing.

    Args:
        environment: as ``Stack.environment`` gives it.
    """
    said = _said(environment)
    if said is None:
        return None
    found = {}
    for model in said["models"]:
        serving = [version for version in model["versions"] if version["version"] == model["serving"]]
        if not serving:
            found[model["model"]] = model["reason"]
        elif serving[0]["state"] != "ready":
            found[model["model"]] = f"version {model['serving']} is {serving[0]['state']}: {serving[0]['reason']}"
    return found


def access_faults(environment: Mapping[str, str]) -> list[str]:
    """Why the endpoint may not know everybody who may ask it; empty where it does, or says nothing."""
    faults = (_said(environment) or {}).get("faults", {})
    whose = {"keys": "the endpoint's keys", "issuer": "the keys of the endpoint's token issuer"}
    return [f"{whose.get(of, of)} could not be taken over: {why}" for of, why in faults.items() if why]


def _said(environment: Mapping[str, str]) -> dict[str, Any] | None:
    url = f"{environment['WINNOW_ENDPOINT_ADMIN']}/admin/models"
    headers = {"Authorization": f"Bearer {environment['WINNOW_ADMIN_TOKEN']}"}
    status, body = fetch(url, timeout=2, headers=headers)
    if status != 200:
        return None
    found: dict[str, Any] = json.loads(body)
    return found
