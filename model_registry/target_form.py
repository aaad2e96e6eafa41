"""A variant in the form that another kind of machine runs, and the proof that it answers alike."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from model_registry.manifest import FileEntry
from model_registry.measurement import Digest
from model_registry.store import Store
from model_registry.variant import Record

Target = Literal["xla", "fpga", "halves", "cuda", "tensorrt"]
"""``xla``: StableHLO, which TPUs, GPUs and CPUs compile for themselves. ``fpga``: Verilog. ``halves``: two ONNX files,
for two machines. ``cuda``, ``tensorrt``: the ONNX file under ONNX Runtime's providers for GPUs."""


class TargetForm(Record):
    """What became of one variant for one target. ``proven``: its files answer as ONNX Runtime does."""

    target: Target
    digest: Digest
    """Of the ONNX variant."""
    variant: Digest | None = None
    """Of the variant that runs the same file on the target, where that is one of ONNX Runtime's providers."""
    state: Literal["proven", "refused"]
    reason: str
    """A sentence: what was compared and found, or why there is no such form."""
    files: tuple[FileEntry, ...] = ()
    split: str = ""
    rows: int = 0
    values: int = 0
    """Numbers that were compared: all outputs of all rows."""
    differing: int = 0
    """Of those, the ones that are not the same bits."""
    largest_difference: float = 0.0
    """Relative to the largest magnitude of its output."""
    tolerance: float = 0.0
    """The largest difference that is allowed; 0: the same bits are demanded."""
    device: str = ""
    """Where the form answered."""
    facts: dict[str, str] = Field(default_factory=dict)
    """What else is known about the form, for people."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Of the libraries that made and compared it."""

    @property
    def key(self) -> str:
        """Record key: ``targets/<digest>/<target>.json``."""
        return f"targets/{self.digest}/{self.target}.json"


def save_target(store: Store, form: TargetForm) -> None:
    """Write the record, or that of an earlier run over again."""
    store.write_record(form.key, form.to_json())


def load_target(store: Store, digest: str, target: Target) -> TargetForm | None:
    """The variant's form for the target; None where nobody asked for one."""
    data = store.read_record(f"targets/{digest}/{target}.json")
    return None if data is None else TargetForm.from_json(data)
