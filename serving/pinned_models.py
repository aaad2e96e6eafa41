"""Models that the endpoint is given by name, version and digest, where there is no ledger to ask.

A container that was made for one version serves that one, whatever is released meanwhile, and needs of the store the
variant's manifest and its files alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from model_registry.ledger import LedgerError
from model_registry.variant_set import SetMember

_PIN = re.compile(r"(?P<model>[A-Za-z0-9][A-Za-z0-9_.-]{0,63})/(?P<version>[1-9][0-9]{0,17})@(?P<digest>[0-9a-f]{64})")


class BadPin(Exception):
    """What is to be served is not written as MODEL/VERSION@DIGEST, or a model is named twice."""


@dataclass(frozen=True)
class PinnedVersion:
    """One version of one model, and the digest of its variant."""

    model: str
    to_version: int
    digest: str

    def __str__(self) -> str:
        return f"{self.model}/{self.to_version}@{self.digest}"


class PinnedModels:
    """Answers as a ledger would (:class:`serving.releases.LedgerReader`) whose champions are given."""

    def __init__(self, pins: Mapping[str, PinnedVersion]) -> None:
        self._pins = dict(pins)

    @classmethod
    def parse(cls, text: str) -> PinnedModels:
        """Of ``MODEL/VERSION@DIGEST``, several with commas between them; the digest in full.

        Raises:
            BadPin: says which part, and what it should be.
        """
        pins = dict[str, PinnedVersion]()
        for part in (part.strip() for part in text.split(",")):
            found = _PIN.fullmatch(part)
            if found is None:
                raise BadPin(f"{part!r} is not MODEL/VERSION@DIGEST, with the 64 hexadecimal digits of its digest")
            if found["model"] in pins:
                raise BadPin(f"the model {found['model']!r} is named twice; one version of it is served")
            pins[found["model"]] = PinnedVersion(found["model"], int(found["version"]), found["digest"])
        return cls(pins)

    def models(self) -> list[str]:
        return sorted(self._pins)

    def champion(self, model: str, /) -> PinnedVersion:
        if model not in self._pins:
            raise LedgerError(f"no version of {model!r} was given")
        return self._pins[model]

    def members(self, model: str, version: int, /) -> Sequence[SetMember]:
        """None: the version is served alone."""
        return ()
