"""Registered versions: which number names which variant. MLflow shows them and decides nothing.

``versions/<model>/<number>.json`` is written once and never again, so that a number names one digest for ever, however
often MLflow's own registry is tidied or lost. What was released before these records were kept stands in the ledger.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pydantic import AwareDatetime, Field, ValidationError

from model_registry.ledger import Ledger
from model_registry.store import Store, StoreError
from model_registry.variant import ModelName, NewerRecord, Record

if TYPE_CHECKING:
    from model_registry.registry import ModelVersion

_KEY = re.compile(r"versions/[^/]+/(?P<number>\d{8,})\.json")
_log = logging.getLogger("winnow.release")


class VersionMissing(StoreError):
    """The model has no such version, or the number is another variant's; names those there are."""


class RegisteredVersion(Record):
    """A number and the variant that it names, as it is stored."""

    model: ModelName
    version: int = Field(ge=1)
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    run_id: str = ""
    """The run that registered it; empty where that is not known."""
    at: AwareDatetime


class Versions:
    """Reads and writes the registered versions of all models in a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def all(self, model: str) -> dict[int, str]:
        """Digest by number, in order; empty for an unknown model. A record that cannot be read is left out.

        Raises:
            LedgerCorrupt: the ledger cannot be read.
        """
        found = {entry.to_version: entry.digest for entry in Ledger(self._store).history(model)}
        with ThreadPoolExecutor(max_workers=8) as pool:
            for record in pool.map(self._read, self._keys(model).values()):
                if record is not None:
                    found[record.version] = record.digest
        return dict(sorted(found.items()))

    def find(self, model: str, digest: str) -> int | None:
        """The number of that variant (the first one, should there be two), or None."""
        return next((number for number, known in self.all(model).items() if known == digest), None)

    def digest(self, model: str, version: int) -> str:
        """The variant that a number names.

        Raises:
            VersionMissing: none; says which numbers there are.
        """
        if (record := self._read(_path(model, version))) is not None:
            return record.digest
        known = self.all(model)
        if version not in known:
            there = ", ".join(map(str, known)) or "none; run the pipeline first"
            raise VersionMissing(f"model {model!r} has no version {version}; it has: {there}")
        return known[version]

    def add(self, model: str, digest: str, *, run_id: str = "", above: int = 0) -> int:
        """Give the variant the next number, greater than ``above``. The caller has looked whether it has one."""
        number = max(above, *self.all(model), *self._keys(model), 0) + 1
        while not self._create(model, number, digest, run_id):
            number += 1  # another process took it
        return number

    def adopt(self, model: str, rows: Iterable[ModelVersion]) -> None:
        """Keep what only MLflow knows: versions that were registered before these records were kept."""
        known = self.all(model)
        for row in rows:
            if row.digest and row.number is None and row.version not in known and row.digest not in known.values():
                self._create(model, row.version, row.digest, row.run_id)

    def _create(self, model: str, number: int, digest: str, run_id: str) -> bool:
        record = RegisteredVersion(model=model, version=number, digest=digest, run_id=run_id, at=datetime.now(UTC))
        return self._store.create_record(_path(model, number), record.to_json())

    def _keys(self, model: str) -> dict[int, str]:
        """Keys of the records by number, those that cannot be read included: their numbers are taken."""
        keys = self._store.list_records(f"versions/{model}/")
        return {int(match["number"]): key for key in keys if (match := _KEY.fullmatch(key))}

    def _read(self, key: str) -> RegisteredVersion | None:
        """A record; None where there is none, or it cannot be read."""
        data = self._store.read_record(key)
        try:
            return None if data is None else RegisteredVersion.from_json(data)
        except (NewerRecord, ValidationError) as error:
            _log.warning("%s cannot be read and is passed over: %s", key, error)
            return None


def _path(model: str, number: int) -> str:
    return f"versions/{model}/{number:08d}.json"
