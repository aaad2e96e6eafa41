"""What a model returned, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

_MOST = 8


def describe_answer(answer: Any) -> str:
    """Like ``float32[7, 10]``, ``tuple (float32[7, 10], float32[7])`` or ``dict {logits: float32[7, 10]}``."""
    if isinstance(answer, Tensor):
        return f"{str(answer.dtype).removeprefix('torch.')}{list(answer.shape)}"
    name = type(answer).__name__
    if isinstance(answer, Mapping):  # the outputs of transformers are of this kind too
        return f"{name} {{{_some([f'{key}: {describe_answer(value)}' for key, value in answer.items()])}}}"
    if isinstance(answer, tuple | list):
        return f"{name} ({_some([describe_answer(value) for value in answer])})"
    return name


def _some(parts: list[str]) -> str:
    return ", ".join(parts if len(parts) <= _MOST else [*parts[:_MOST], f"... {len(parts) - _MOST} more"])
