"""What a release reached between its beginning and its end, beside the ledger and for people: nothing depends on it.

``ledger-steps/<model>/<seq>/<number>.json``, each written once.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from pydantic import AwareDatetime, Field, ValidationError

from model_registry.ledger import Entry
from model_registry.owner import Owner
from model_registry.store import Store
from model_registry.variant import ModelName, NewerRecord, Record

_LONGEST = 500
_log = logging.getLogger("winnow.ledger")


class ReleaseStep(Record):
    """One of them, as it is stored."""

    model: ModelName
    seq: int = Field(ge=1)
    number: int = Field(ge=1)
    what: str
    """``loaded``, ``checked``, ``canary 5 %``, ``swapped``, ..."""
    detail: str = ""
    at: AwareDatetime
    by: Owner


class ReleaseSteps:
    """Of all releases in a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def add(self, entry: Entry, what: str, detail: str = "") -> ReleaseStep:
        """Write down what a release has reached."""
        number = len(self._store.list_records(_folder(entry.model, entry.seq)))
        while True:
            number += 1
            step = ReleaseStep(
                model=entry.model,
                seq=entry.seq,
                number=number,
                what=what,
                detail=detail[:_LONGEST],
                at=datetime.now(UTC),
                by=Owner.current(),
            )
            if self._store.create_record(f"{_folder(entry.model, entry.seq)}{number:04d}.json", step.to_json()):
                return step

    def of(self, model: str, seq: int) -> list[ReleaseStep]:
        """In order; a step that cannot be read is left out."""
        found = []
        for key in self._store.list_records(_folder(model, seq)):
            try:
                found.append(ReleaseStep.from_json(self._store.read_record(key) or b""))
            except (NewerRecord, ValidationError) as error:
                _log.warning("%s cannot be read and is passed over: %s", key, error)
        return found


def _folder(model: str, seq: int) -> str:
    return f"ledger-steps/{model}/{seq:08d}/"
