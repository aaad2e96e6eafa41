"""Mixed precision while training: which type operations run in."""

from __future__ import annotations

import logging
from typing import Literal

import torch

Amp = Literal["auto", "off", "bf16", "fp16"]

_log = logging.getLogger("winnow.fit")


def amp_dtype(amp: Amp, where: torch.device) -> torch.dtype | None:
    """The type that training runs in, or None for float32.

    ``auto`` is bf16 on accelerators (fp16 on those of CUDA without it). On a CPU training runs in float32, and the log
    says so where a type was asked for: a CPU without instructions for it takes 10 to 20 times as long (VGG and
    ResNet-20, EPYC without AVX-512, PyTorch 2.13), and nobody has measured a gain on one with them.
    """
    if amp == "off" or (amp == "auto" and where.type == "cpu"):
        return None
    if where.type == "cpu":
        _log.warning("amp %s: mixed precision is for accelerators, this is a CPU; training in float32", amp)
        return None
    if amp == "auto":
        old = where.type == "cuda" and not torch.cuda.is_bf16_supported()
        return torch.float16 if old else torch.bfloat16
    return {"bf16": torch.bfloat16, "fp16": torch.float16}[amp]
