"""An accelerator's memory is full: what is said then."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from tasks.running.errors import StageOutOfMemory


@contextlib.contextmanager
def smaller_batch_offered(batch_size: int, where: torch.device) -> Iterator[None]:
    """Name torch's error, and what to do about it.

    Args:
        batch_size: rows of a batch, as asked for.

    Raises:
        StageOutOfMemory: in place of torch's OutOfMemoryError.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        first = str(error).splitlines()[0] if str(error) else "no more memory"
        remedy = f"set batch_size: {batch_size // 2}" if batch_size > 2 else "take a smaller model"
        raise StageOutOfMemory(
            f"the memory of {where} is full while training on batches of {batch_size} rows ({first}); {remedy}, or "
            "train on a device with more memory"
        ) from error
