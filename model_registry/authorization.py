"""Who asks: the header that a server with a password wants, from the variables that its own clients read."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping


def mlflow_authorization(environment: Mapping[str, str]) -> dict[str, str]:
    """By MLFLOW_TRACKING_USERNAME and _PASSWORD, or MLFLOW_TRACKING_TOKEN; empty where none is set."""
    user, password = (environment.get(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "PASSWORD"))
    if user and password:
        return basic_authorization(f"{user}:{password}")
    return _bearer(environment.get("MLFLOW_TRACKING_TOKEN"))


def prefect_authorization(environment: Mapping[str, str]) -> dict[str, str]:
    """By PREFECT_API_AUTH_STRING, or PREFECT_API_KEY; empty where none is set."""
    user_and_password = environment.get("PREFECT_API_AUTH_STRING")
    if user_and_password:
        return basic_authorization(user_and_password)
    return _bearer(environment.get("PREFECT_API_KEY"))


def basic_authorization(user_and_password: str) -> dict[str, str]:
    """The header for ``user:password``, RFC 7617."""
    return {"Authorization": "Basic " + b64encode(user_and_password.encode()).decode()}


def _bearer(token: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}
