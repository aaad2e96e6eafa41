"""What a form for another machine is made of, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from model_registry.variant import Variant


@dataclass(frozen=True)
class FormRequest:
    """A variant that is to be compiled for a target, and how it is compared."""

    variant: Variant
    file: bytes
    """Its ONNX file."""
    inputs: Sequence[NDArray[Any]]
    """The test split: raw rows of each input, in the variant's order, [rows, ...]."""
    wanted: Sequence[NDArray[Any]]
    """What ONNX Runtime answers to them, each output [rows, ...]."""
    batch: int
    """Rows that are asked about together."""
    seed: int
    folder: Path
    """For files on the way."""
    progress: Callable[[float, str], None]
    gpu: str = ""
    """Class of the GPU that is asked, for targets that run on one."""


@dataclass(frozen=True)
class MadeForm:
    """``fields``: of a TargetForm, without those that are the same for all targets. ``contents``: its files by name.
    ``variant``: what is served in its place, of the same files, where that is an ONNX variant too."""

    fields: dict[str, Any]
    contents: dict[str, bytes]
    variant: Variant | None = None
