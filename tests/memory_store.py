"""A store whose records lie in a dict: for tests of what the records say, where no server has a part in it."""

from __future__ import annotations

from model_registry.store import Store


class Memory(Store):
    """Records alone; there is nothing behind the rest."""

    def __init__(self) -> None:
        self.records: dict[str, bytes] = {}
        self.records_bucket = "memory-records"

    def create_record(self, key: str, data: bytes) -> bool:
        return self.records.setdefault(key, data) is data

    def write_record(self, key: str, data: bytes) -> None:
        self.records[key] = data

    def read_record(self, key: str) -> bytes | None:
        return self.records.get(key)

    def list_records(self, prefix: str) -> list[str]:
        return sorted(key for key in self.records if key.startswith(prefix))
