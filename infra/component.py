"""A component of the stack: a value that says how one process is started and when it is well."""

from __future__ import annotations

import hashlib
import http.client
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

BUSY_SECONDS = 6.0
"""How long a server may say that it is busy."""


@dataclass(frozen=True)
class Component:
    """What to run. ``environment`` is added to the caller's; the ``health`` URLs all answer 200 when it is well.

    ``needs`` names the components that must be well before this one is started, ``patience`` is the number of
    seconds that it may do nothing (no line in its log, no computing) before it is well, ``grace`` those that it has to
    end by itself. With ``epilogue`` its children are ended before it, and it has this number of seconds to report that.
    """

    name: str
    title: str
    argv: tuple[str, ...]
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    url: str = ""
    health: tuple[str, ...] = ()
    #: what the health URLs are asked with
    headers: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    patience: float = 60.0
    grace: float = 5.0
    epilogue: float | None = None
    #: a variable in the environment of descendants that go on without it, as a worker's flow runs do
    spares: str = ""
    #: for its temporary files (TMPDIR), emptied before it starts: a killed one leaves them
    scratch: Path | None = None
    #: leftovers outside the stack's folder that a killed process does not remove (sockets)
    litter: tuple[Path, ...] = ()

    @property
    def recipe(self) -> str:
        """Changes when the component would be started differently (the caller's proxy settings do not matter)."""
        matters = {name: value for name, value in self.environment.items() if name.upper() != "NO_PROXY"}
        text = json.dumps([self.argv, str(self.folder), matters], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def is_well(self, timeout: float = 1.0) -> bool:
        """Whether every health URL answers 200 within the timeout, in seconds."""
        return all(fetch(url, timeout=timeout, headers=self.headers)[0] == 200 for url in self.health)


def fetch(
    url: str, *, timeout: float = 1.0, method: str = "GET", body: bytes | None = None, headers: Mapping[str, str] = {}
) -> tuple[int, bytes]:
    """One plain HTTP request that no proxy setting diverts; (0, reason) where nothing answers in time."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
    try:
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(method, target, body=body, headers=dict(headers))
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error).encode()
    finally:
        connection.close()


def fetch_when_free(url: str, **given: Any) -> tuple[int, bytes]:
    """:func:`fetch`, again for some seconds while the answer is 503, as Prefect's is while its SQLite is locked: then
    nothing was done."""
    deadline, pause = time.monotonic() + BUSY_SECONDS, 0.1
    while True:
        found = fetch(url, **given)
        if found[0] != 503 or time.monotonic() + pause > deadline:
            return found
        time.sleep(pause)
        pause *= 2
