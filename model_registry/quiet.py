"""What every process that Winnow starts has in its environment."""

from __future__ import annotations

TELEMETRY_OFF = {
    "DO_NOT_TRACK": "true",  # MLflow takes only this literal
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""No library calls home."""

QUIET = {
    **TELEMETRY_OFF,
    "PYTHONSAFEPATH": "1",  # a user's own tasks/ folder never shadows ours
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "",  # compiling all of Prefect takes longer than starting it, and each process would
}
