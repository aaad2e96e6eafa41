"""What tuning is asked and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from model_registry.measurement import Interval
from model_registry.variant import Frozen, RuntimeSpec, Variant


class Option(Frozen):
    """One change to how a variant runs."""

    name: str
    runtime: dict[str, Any] = Field(default_factory=dict, description="fields of RuntimeSpec")
    variant: Variant | None = Field(default=None, description="the same model in a rewritten file; None: as it is")
    folder: Path | None = Field(default=None, description="of the rewritten file")


class TuningRequest(Frozen):
    """What to tune, on what, and how carefully."""

    variant: Variant
    folder: Path = Field(description="holds the variant's files under their manifest names")
    options: tuple[Option, ...]
    inputs: Path = Field(description="npz: an array per input of the variant, one row per sample")
    threads: int = Field(default=1, ge=1, description="CPUs pinned, the most that an option uses")
    batch: int = Field(default=1, ge=1, description="samples per request")
    rounds: int = Field(default=20, ge=2, description="blocks of requests per engine and option")
    seconds: float = Field(default=1.0, ge=0, description="time for the blocks of one option, both sides, about")
    tolerance: float = Field(default=1e-4, gt=0, description="difference allowed, relative to outputs above 1")
    int8: bool = Field(default=False, description="answers may differ where every row keeps its largest output")
    seed: int = Field(default=0, ge=0, description="of the order of blocks and of the bootstrap")


class Trial(Frozen):
    """What one option was measured to be."""

    option: str
    ratio: float | None = None
    """Latency as it is over latency with the option: above 1 is faster. None where it was not timed."""
    interval: Interval | None = None
    difference: float | None = None
    """Largest absolute difference of an output."""
    verdict: Literal["kept", "dropped"]
    reason: str


class TuningResult(Frozen):
    """The options that are kept, and what all were measured to be."""

    kept: tuple[str, ...]
    runtime: RuntimeSpec
    """With all that is kept."""
    trials: tuple[Trial, ...]
    control: Interval
    """Of two engines that are the same: what the machine alone makes of nothing."""
    confirmed: Trial | None
    """All that is kept, measured once more against the variant as it is; None where no option was faster."""
    p50_ms: float
    """Of the variant as it is."""
    tuned_p50_ms: float | None
    """With all that is kept, from the same rounds; None where nothing is."""
    cpus: tuple[int, ...]


def tuned_runtime(runtime: RuntimeSpec, changes: Sequence[dict[str, Any]]) -> RuntimeSpec:
    """The runtime with all changes made; optimizers left out add up."""
    values = runtime.model_dump()
    without = set(runtime.disabled_optimizers)
    for change in changes:
        values |= change
        without |= set(change.get("disabled_optimizers", ()))
    return RuntimeSpec.model_validate({**values, "disabled_optimizers": sorted(without)})
