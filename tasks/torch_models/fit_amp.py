"""Mixed precision while training: which type operations run in, on which hardware it pays."""

from __future__ import annotations

import logging
from typing import Literal

import torch

Amp = Literal["auto", "off", "bf16", "fp16"]

_log = logging.getLogger("winnow.fit")
_NATIVE = {"bf16": ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"), "fp16": ("avx512_fp16", "amx_fp16", "fp16_arith")}
"""Names among ``torch.cpu.get_capabilities()`` of instructions that multiply in the type."""


def amp_dtype(amp: Amp, where: torch.device) -> torch.dtype | None:
    """The type that training runs in, or None for float32.

    ``auto`` is bf16 (else fp16) on CUDA and off elsewhere. A type that the CPU has no instructions for is emulated
    there, which takes 10 to 20 times as long as float32 (VGG and ResNet-20, EPYC without AVX-512, PyTorch 2.13): such
    a training runs in float32, and the log says so.
    """
    if amp == "off" or (amp == "auto" and where.type != "cuda"):
        return None
    if amp == "auto":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if where.type == "cpu" and not computes_natively(amp):
        _log.warning("amp %s: this CPU has no instructions for it, which would be slower; training in float32", amp)
        return None
    return {"bf16": torch.bfloat16, "fp16": torch.float16}[amp]


def computes_natively(amp: Literal["bf16", "fp16"]) -> bool:
    """Whether this CPU multiplies in that type."""
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in _NATIVE[amp])
