"""A process that asks the store something for the endpoint, and ends: ``python -m serving.store_process QUESTION``.

``releases`` says what is to be served, ``variant DIGEST FOLDER`` puts a variant there. The answer is one JSON object on
standard output: ``{"said": ...}``, or ``{"error", "text", "number"}`` of an error that is to be expected. It ends when
its standard input does: the endpoint is gone then.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import orjson

from model_registry.store import Store, StoreError
from model_registry.variant import NewerRecord
from serving.releases import stored_releases
from serving.telemetry.log_lines import configure_log
from serving.variant_cache import ManifestAltered, download_variant


def main() -> None:
    """Answer the question of the command line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all: the endpoint says when it is over
    answer = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints belongs into the log
    threading.Thread(target=_end_with_the_endpoint, daemon=True).start()
    configure_log()
    with os.fdopen(answer, "wb") as stream:
        stream.write(orjson.dumps(_answer(sys.argv[1:])))
    os._exit(0)  # there is nothing to clean up, which would take a fifth of a second


def _answer(question: list[str]) -> dict[str, Any]:
    try:
        return {"said": _said(question)}
    except (StoreError, NewerRecord, ManifestAltered) as error:
        return {"error": type(error).__name__, "text": str(error)}
    except OSError as error:
        return {"error": "OSError", "text": error.strerror or str(error), "number": error.errno}


def _said(question: list[str]) -> Any:
    match question:
        case ["releases"]:
            return {model: found.to_json() for model, found in stored_releases().items()}
        case ["variant", digest, folder]:
            download_variant(Store.from_environment(), digest, Path(folder))
            return None
        case _:
            raise ValueError(f"{question} is none of: releases, variant DIGEST FOLDER")


def _end_with_the_endpoint() -> None:
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    main()
