"""The class of a GPU, read from a driver that is made up, and who may run where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model_registry import gpu_class as module
from model_registry.gpu_class import GpuClassMismatch, NoGpu, gpu_class, require_gpu_class

H200 = "nvidia-h200/sm90/driver580"
VERSION = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder)\n"


class Driver:
    """What libcuda answers; ``broken``: the function that fails, and its code."""

    def __init__(self, *, name: str = "NVIDIA H200", count: int = 1, broken: tuple[str, int] = ("", 0)) -> None:
        self.name, self.count, self.broken = name, count, broken

    def __getattr__(self, function: str) -> Any:
        def answer(*arguments: Any) -> int:
            if function == self.broken[0]:
                return self.broken[1]
            if function == "cuDeviceGetName":
                arguments[0].value = self.name.encode()
            elif function != "cuInit":
                numbers = {"cuDeviceGetCount": self.count, "cuDeviceGet": 0}
                capability = {75: 9, 76: 0}
                found = numbers[function] if function in numbers else capability[arguments[1]]
                arguments[0]._obj.value = found  # what byref() points to
            return 0

        return answer


@pytest.fixture
def version(tmp_path: Path) -> Path:
    (tmp_path / "version").write_text(VERSION)
    return tmp_path / "version"


def test_a_class_is_name_capability_and_driver(version: Path) -> None:
    assert gpu_class(Driver(), version) == H200
    named = gpu_class(Driver(name="NVIDIA A100-SXM4-80GB MIG 1g.10gb"), version)
    assert named == "nvidia-a100-sxm4-80gb-mig-1g-10gb/sm90/driver580"


@pytest.mark.parametrize(
    ("driver", "said"),
    [
        (Driver(broken=("cuInit", 100)), "answers cuInit with error 100: there is no GPU, or the driver is too old"),
        (Driver(count=0), "no GPU for this process: look at CUDA_VISIBLE_DEVICES"),
        (Driver(broken=("cuDeviceGet", 101)), "answers cuDeviceGet with error 101"),
    ],
)
def test_it_is_said_what_is_missing(driver: Driver, said: str, version: Path) -> None:
    with pytest.raises(NoGpu, match=said):
        gpu_class(driver, version)


def test_a_driver_without_a_version_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoGpu, match="version of NVIDIA's driver cannot be read"):
        gpu_class(Driver(), tmp_path / "version")
    (tmp_path / "version").write_text("nothing")
    with pytest.raises(NoGpu, match="tells no version"):
        gpu_class(Driver(), tmp_path / "version")


def test_a_machine_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIBRARY", "libcuda-of-nobody.so.1")
    with pytest.raises(NoGpu, match=r"driver is not installed .*libcuda-of-nobody"):
        gpu_class()
    with pytest.raises(GpuClassMismatch, match=f"net was proven on the GPU {H200}, and this machine has none"):
        require_gpu_class(H200, "net")


def test_a_variant_runs_on_its_class_alone() -> None:
    require_gpu_class(None, "net")
    require_gpu_class(H200, "net", H200)
    other = "nvidia-h200/sm90/driver570"
    with pytest.raises(GpuClassMismatch, match=f"net was proven on the GPU {H200}, this machine has {other}; run"):
        require_gpu_class(H200, "net", other)
