"""The GPU class: which GPU a variant was proven on, as one short name, like ``nvidia-h200/sm90/driver580``.

On another GPU, or under another driver, the same file may run other kernels, which add in another order. So a variant
for GPUs is served only where name, compute capability and the driver's major version are those of its proof.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import Any

LIBRARY = "libcuda.so.1"
DRIVER_VERSION = Path("/proc/driver/nvidia/version")

# CUdevice_attribute in cuda.h
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76


class NoGpu(Exception):
    """There is no GPU that can be used here; the text says what is missing."""


class GpuClassMismatch(Exception):
    """The variant was proven on another kind of GPU. Prove it on this one, or deploy a variant for CPUs."""


def gpu_class(driver: Any = None, version: Path = DRIVER_VERSION) -> str:
    """Name of the class of the first GPU that this process may use: what ONNX Runtime takes.

    Args:
        driver: NVIDIA's driver library; None: the one that is installed.
        version: where the kernel tells the driver's version.

    Raises:
        NoGpu: there is no driver, or it has no GPU for this process.
    """
    driver = driver if driver is not None else _installed()
    _ask(driver, "cuInit", 0)
    device, number, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    _ask(driver, "cuDeviceGetCount", ctypes.byref(number))
    if number.value < 1:
        raise NoGpu("NVIDIA's driver has no GPU for this process: look at CUDA_VISIBLE_DEVICES")
    _ask(driver, "cuDeviceGet", ctypes.byref(device), 0)
    _ask(driver, "cuDeviceGetName", name, len(name), device)
    capability = ""
    for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR):
        _ask(driver, "cuDeviceGetAttribute", ctypes.byref(number), attribute, device)
        capability += str(number.value)
    return f"{_slug(name.value.decode(errors='replace'))}/sm{capability}/driver{_major(version)}"


def require_gpu_class(wanted: str | None, what: str, found: str | None = None) -> None:
    """Refuse to run ``what`` on another kind of GPU; ``wanted`` None means that it needs none.

    Args:
        found: the class of this machine's GPU; None: it is asked for.

    Raises:
        GpuClassMismatch: naming the model, both classes and the remedy.
    """
    if wanted is None:
        return
    try:
        here = found or gpu_class()
    except NoGpu as error:
        raise GpuClassMismatch(
            f"{what} was proven on the GPU {wanted}, and this machine has none: {error}; deploy a variant for CPUs"
        ) from error
    if wanted != here:
        raise GpuClassMismatch(
            f"{what} was proven on the GPU {wanted}, this machine has {here}; run the pipeline with its target on a "
            "machine of this class, or deploy a variant for CPUs"
        )


def _installed() -> Any:
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise NoGpu(f"NVIDIA's driver is not installed ({error})") from error


def _ask(driver: Any, function: str, *arguments: Any) -> None:
    code = getattr(driver, function)(*arguments)
    if code != 0:
        raise NoGpu(f"NVIDIA's driver answers {function} with error {code}: there is no GPU, or the driver is too old")


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _major(version: Path) -> str:
    """Major version of the kernel's driver, such as ``580``."""
    try:
        text = version.read_text()
    except OSError as error:
        raise NoGpu(f"the version of NVIDIA's driver cannot be read ({error})") from error
    found = re.search(r"\b(\d{3,})\.\d+", text)
    if found is None:
        raise NoGpu(f"{version} tells no version of NVIDIA's driver")
    return found[1]
