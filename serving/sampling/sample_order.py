"""What is sampled, and for how long it is kept; off unless it is asked for."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

_MOST_DAYS = 36_500


@dataclass(frozen=True)
class SampleOrder:
    """``share`` of the answered requests that is kept, over 0 and up to 1, for ``days`` days."""

    share: float
    days: int = 30


def sample_order(environment: Mapping[str, str]) -> SampleOrder | None:
    """From WINNOW_SAMPLE and WINNOW_SAMPLE_DAYS; None where nothing is to be sampled.

    Raises:
        ValueError: one of them cannot be, or what writes the files is missing; names it, and what to do.
    """
    share, days = _number(environment, "WINNOW_SAMPLE", 0.0), _number(environment, "WINNOW_SAMPLE_DAYS", 30)
    if not 0 <= share <= 1:
        raise ValueError(f"WINNOW_SAMPLE is {share:g}; set it to a share of the requests, such as 0.01, or unset it")
    if not (1 <= days <= _MOST_DAYS and days == int(days)):
        raise ValueError(f"WINNOW_SAMPLE_DAYS is {days:g}; set it to a whole number of days, 1 to {_MOST_DAYS}")
    if not share:
        return None
    if importlib.util.find_spec("pyarrow") is None:
        raise ValueError(
            "WINNOW_SAMPLE is set and what writes Parquet is not installed: pip install 'winnow-mlops[samples]', or "
            "unset it"
        )
    return SampleOrder(share, int(days))


def _number(environment: Mapping[str, str], variable: str, default: float) -> float:
    value = environment.get(variable)
    if not value:
        return default
    with suppress(ValueError):
        if math.isfinite(number := float(value)):
            return number
    raise ValueError(f"{variable} is {value!r}, which is no number")
