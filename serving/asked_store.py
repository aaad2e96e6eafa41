"""What the front asks the store by processes that end: S3's client takes 24 MB, and is needed for moments."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import orjson

from model_registry.ledger import LedgerCorrupt, LedgerError
from model_registry.store_errors import (
    BucketMissing,
    CorruptObject,
    ObjectMissing,
    StoreDenied,
    StoreError,
    StoreRefused,
    StoreUnavailable,
)
from model_registry.variant import NewerRecord
from serving.releases import Released
from serving.side_process import environment_beside, how_it_ended
from serving.variant_cache import ManifestAltered

_ERRORS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (
        *(BucketMissing, CorruptObject, ObjectMissing, StoreDenied, StoreRefused, StoreUnavailable),
        *(LedgerCorrupt, LedgerError, ManifestAltered, NewerRecord),
    )
}
_NOT_FOR_IT = ("WINNOW_ADMIN_TOKEN", "WINNOW_TLS_")
_AT_ONCE = threading.BoundedSemaphore(2)
"""Of these processes: each takes 60 MB while it runs, and many models may be missing at once."""


def ask_for_releases() -> dict[str, Released]:
    """What :func:`serving.releases.stored_releases` says and raises. Blocks: call it in a thread.

    Raises:
        StoreUnavailable: also where there is no process, or it died.
    """
    said = _ask("releases")
    return {model: Released.from_json(model, released) for model, released in said.items()}


def ask_for_variant(digest: str, folder: Path) -> None:
    """Have :func:`serving.variant_cache.download_variant` put a variant there; blocks, and raises as it does.

    Raises:
        StoreUnavailable: also where there is no process, or it died.
    """
    _ask("variant", digest, str(folder))


def _ask(*question: str) -> Any:
    with _AT_ONCE:
        answer, status = _answer_of(question)
    if status:
        raise StoreUnavailable(f"the store was asked in vain: the {how_it_ended(status)}; the endpoint's log says why")
    said = orjson.loads(answer)
    if "error" not in said:
        return said["said"]
    if said["error"] == "OSError":
        raise OSError(said["number"] or errno.EIO, said["text"])
    raise _ERRORS.get(said["error"], StoreError)(said["text"])


def _answer_of(question: tuple[str, ...]) -> tuple[bytes, int]:
    """What the process wrote, and its status."""
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "serving.store_process", *question],
            stdin=subprocess.PIPE,  # nothing is written to it: its end tells the process that we are gone
            stdout=subprocess.PIPE,
            env=environment_beside(_NOT_FOR_IT),
        )
    except OSError as error:  # no descriptors or memory left
        raise StoreUnavailable(f"no process can be started that asks the store: {error.strerror}") from error
    with process:
        assert process.stdout is not None
        return process.stdout.read(), process.wait()  # only then is its standard input closed
