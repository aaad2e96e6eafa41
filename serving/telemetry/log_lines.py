"""How the endpoint's processes write their log, to standard error: text, or a line of JSON each (WINNOW_LOG=json)."""

from __future__ import annotations

import logging
import os
import sys
from datetime import UTC, datetime

import orjson

FORMS = ("text", "json")
_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def log_form() -> str:
    """``text`` or ``json``, by WINNOW_LOG. Raises ValueError, which says what to set."""
    form = os.environ.get("WINNOW_LOG") or "text"
    if form not in FORMS:
        raise ValueError(f"WINNOW_LOG is {form!r}; set it to text or json")
    return form


def configure_log() -> None:
    """Write the log in the form that the environment asks for."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if log_form() == "json" else logging.Formatter(_TEXT))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for quiet in ("botocore", "boto3", "s3transfer", "urllib3", "asyncio"):
        logging.getLogger(quiet).setLevel(logging.WARNING)


class JsonLines(logging.Formatter):
    """``time``, ``level``, ``logger``, ``message``; where there is one ``request`` (its id), ``error`` (a stack)."""

    def format(self, record: logging.LogRecord) -> str:
        said = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (request := getattr(record, "request", None)) is not None:
            said["request"] = str(request)
        if record.exc_info:
            said["error"] = self.formatException(record.exc_info)
        # What is no text in UTF-8 (a name of a file, say) is better shown in part than lost.
        return orjson.dumps({n: v.encode(errors="backslashreplace").decode() for n, v in said.items()}).decode()
