"""The CPU class: which int8 instructions this machine has, as one short name.

An int8 model can give different answers on different CPUs. Without VNNI, x86 multiplies u8 by s8 into saturating
16-bit sums, so weights must be kept to 7 bits (``reduce_range``); with VNNI the sums are exact 32-bit. AMX machines
have VNNI too and sum exactly as well, so they are no class of their own.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

# First match wins, so each list goes from the newest instructions to the oldest.
_X86 = (("avx512_vnni", "avx512-vnni"), ("avx_vnni", "avx-vnni"), ("avx512bw", "avx512"), ("avx2", "avx2"))
_ARM = (("i8mm", "i8mm"), ("asimddp", "dotprod"))
_X86_NAMES = {"x86_64", "amd64"}
_ARM_NAMES = {"aarch64", "arm64"}


class CpuClassMismatch(Exception):
    """The variant was quantized and validated for other int8 instructions. Quantize it on this class of machine."""


def cpu_class(cpuinfo: Path = CPUINFO, machine: str | None = None) -> str:
    """Name of this machine's class, e.g. ``x86-64/avx512-vnni``, ``x86-64/avx2``, ``aarch64/dotprod``.

    A machine whose flags cannot be read (no /proc) gets the oldest class of its architecture: always safe, maybe slow.
    """
    name = (machine or platform.machine()).lower()
    flags = _flags(cpuinfo)
    if name in _X86_NAMES:
        return "x86-64/" + next((label for flag, label in _X86 if flag in flags), "sse")
    if name in _ARM_NAMES:
        return "aarch64/" + next((label for flag, label in _ARM if flag in flags), "neon")
    return f"{name}/generic"


def cpu_model(cpuinfo: Path = CPUINFO) -> str:
    """The processor's name as the kernel gives it; of a machine that gives none, its architecture."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return model or platform.machine()


def machine_name() -> str:
    """What this machine is called where machines that measure are named: ``AMD EPYC 7B13, 8 cores``."""
    return f"{cpu_model()}, {len(os.sched_getaffinity(0))} cores"


def sums_saturate(name: str) -> bool:
    """Whether u8 x s8 products overflow 16-bit sums on this class, so that weights need ``reduce_range``."""
    return name.startswith("x86-64/") and not name.endswith("vnni")


def require_cpu_class(wanted: str | None, what: str, found: str | None = None) -> None:
    """Refuse to run ``what`` on a machine of another class; ``wanted`` None means that it runs anywhere.

    Raises:
        CpuClassMismatch: naming the model, both classes and the remedy.
    """
    here = found or cpu_class()
    if wanted is not None and wanted != here:
        raise CpuClassMismatch(
            f"{what} was quantized and validated for CPU class {wanted}, this machine is {here}; "
            "run the pipeline on a machine of this class, or deploy a variant without int8 weights"
        )


def _flags(cpuinfo: Path) -> set[str]:
    """Feature flags of the first processor listed (``flags`` on x86, ``Features`` on ARM)."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        return set()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"flags", "Features"}:
            return set(value.split())
    return set()
