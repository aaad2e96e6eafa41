"""Records: small documents by key, of which the bucket keeps every version; among them the manifests of variants."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

from pydantic import ValidationError

from model_registry.manifest import canonical_json
from model_registry.s3_buckets import Buckets
from model_registry.store_errors import CorruptObject, ObjectMissing
from model_registry.variant import NewerRecord, Variant


class Records(Buckets):
    """Keys of the versioned bucket."""

    def read_record(self, key: str) -> bytes | None:
        """A record's bytes; None where there is none. An outage is an error, never a None."""
        found = self._get(self.records_bucket, key)
        return None if found is None else found[0]

    def create_record(self, key: str, data: bytes) -> bool:
        """Write a record once; False where one is already there (the first writer wins)."""
        return self._put_conditional(self.records_bucket, key, data, if_none_match="*")

    def write_record(self, key: str, data: bytes) -> None:
        """Write or overwrite a record (the bucket keeps the older versions)."""
        self._put(self.records_bucket, key, data, {"ContentType": "application/json"})

    def delete_record(self, key: str) -> None:
        """Hide a record behind a delete marker (the bucket keeps the older versions)."""
        self.remove(self.records_bucket, key)

    def list_records(self, prefix: str) -> list[str]:
        """Keys of all records under the prefix, sorted."""
        return sorted(key for key, _, _ in self._list(self.records_bucket, prefix))

    # -- variants -----------------------------------------------------------------------------------------------
    def save_variant(self, variant: Variant) -> None:
        """Write the variant's manifest, last: its files must be in the store already."""
        key, data = f"variants/{variant.digest}.json", variant.to_json()
        if not self.create_record(key, data) and not self._is_variant(key):
            self.write_record(key, data)  # what lay there was damaged

    def _is_variant(self, key: str) -> bool:
        try:
            return Variant.from_json(self.read_record(key) or b"") is not None
        except NewerRecord:
            return True
        except ValidationError:
            return False

    def load_variant(self, digest: str) -> Variant:
        """The variant of that digest; ObjectMissing if the store has none, ValidationError if it was altered,
        NewerRecord if a newer version of Winnow wrote it."""
        key = f"variants/{digest}.json"
        data = self.read_record(key)
        if data is not None:
            return Variant.from_json(data)
        found = self._of_a_stage(digest)
        if found is None:
            raise ObjectMissing(f"{self.uri} has no variant {digest}; list them with `winnow runs`")
        self.create_record(key, found.to_json())
        return found

    def _of_a_stage(self, digest: str) -> Variant | None:
        """The variant from the record of the stage that made it: its own manifest was lost."""

        def look(key: str) -> Variant | None:
            try:
                made = json.loads(self.read_record(key) or b"{}").get("variants") or ()
                return next((Variant.from_json(canonical_json(v)) for v in made if v.get("digest") == digest), None)
            except (ValueError, AttributeError, CorruptObject):  # damaged itself
                return None

        with ThreadPoolExecutor(max_workers=8) as pool:
            return next((found for found in pool.map(look, self.list_records("stages/")[::-1]) if found), None)
