"""What is exported: one registered version, how it is called elsewhere, and what it takes to run."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from model_registry.ledger import Ledger
from model_registry.measurement import Measurement
from model_registry.store import Store
from model_registry.variant import Variant
from model_registry.versions import Versions
from tasks.running.errors import WinnowError

_LABEL = 52
"""Letters of a name: a label of 63, with room for the suffix of what is made from it (`-tls`, a pod's number)."""
_FRONT_MIB = 128
"""What the endpoint takes without a model."""
_BODIES_MIB = 256
"""What may wait for a version (serving/limits.py: pending_bytes)."""
_MIB = 1 << 20


class NotExportable(WinnowError):
    """The version cannot be exported; says which one, why, and what to do."""


@dataclass(frozen=True)
class Needs:
    """What one endpoint with this version takes: whole ``cores``, and ``mebibytes`` of memory."""

    cores: int
    mebibytes: int


@dataclass(frozen=True)
class ExportedVersion:
    """A version of a model, and the store that has it."""

    model: str
    version: int
    variant: Variant
    store_uri: str

    @classmethod
    def find(cls, store: Store, model: str, version: int | None) -> ExportedVersion:
        """That version, or without a number the champion.

        Raises:
            NotExportable: nothing was released, or it is no ONNX file.
            VersionMissing: the model has no such version.
        """
        if version is None:
            champion = Ledger(store).champion(model)
            if champion is None:
                raise NotExportable(f"no version of {model!r} was released; say which one with --version")
            version, digest = champion.to_version, champion.digest
        else:
            digest = Versions(store).digest(model, version)
        variant = store.load_variant(digest)
        if variant.format != "onnx":
            raise NotExportable(f"version {version} of {model!r} is {variant.format}, not onnx; nothing else is served")
        return cls(model, version, variant, store.uri)

    @property
    def pin(self) -> str:
        """As ``winnow serve --pin`` takes it."""
        return f"{self.model}/{self.version}@{self.variant.digest}"

    @property
    def label(self) -> str:
        """A name by RFC 1035, as Kubernetes wants it; models that differ have names that differ."""
        plain = f"winnow-{self.model}"
        name = re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")
        if name == plain and len(name) <= _LABEL:
            return name
        return f"{name[: _LABEL - 9].rstrip('-')}-{hashlib.sha256(self.model.encode()).hexdigest()[:8]}"

    def needs(self, store: Store) -> Needs:
        """From the most memory that any measurement of this variant took.

        A core for each of the model's threads, and one for the front. So many cores hold one engine, or two of a model
        of one thread; one more comes beside them for large bodies, or while one is replaced.

        Raises:
            NotExportable: it was never measured.
        """
        records = (store.read_record(key) for key in store.list_records(f"measurements/{self.variant.digest}/"))
        taken = [Measurement.from_json(record).peak_rss_bytes for record in records if record is not None]
        if not taken:
            raise NotExportable(
                f"version {self.version} of {self.model!r} has no measurement in {self.store_uri}, so that nobody "
                "knows what it takes; say it with --memory"
            )
        cores, engines = self.cores, 3 if self.variant.runtime.intra_op_threads == 1 else 2
        return Needs(cores, _FRONT_MIB + _BODIES_MIB + engines * -(-max(taken) // _MIB))

    @property
    def cores(self) -> int:
        """As :meth:`needs` has it."""
        return self.variant.runtime.intra_op_threads + 1
