"""CPU classes from the kernel's flags."""

from __future__ import annotations

from pathlib import Path

import pytest

from model_registry.cpu_class import CpuClassMismatch, cpu_class, require_cpu_class, sums_saturate


@pytest.mark.parametrize(
    ("machine", "line", "expected"),
    [
        ("x86_64", "flags\t\t: fpu avx2 avx512f avx512bw avx_vnni avx512_vnni", "x86-64/avx512-vnni"),
        ("x86_64", "flags : fpu avx2 avx_vnni", "x86-64/avx-vnni"),
        ("x86_64", "flags : fpu avx2 avx512f avx512bw", "x86-64/avx512"),
        ("AMD64", "flags : fpu avx avx2", "x86-64/avx2"),
        ("x86_64", "flags : fpu sse4_2", "x86-64/sse"),
        ("aarch64", "Features : fp asimd asimddp i8mm", "aarch64/i8mm"),
        ("aarch64", "Features : fp asimd asimddp", "aarch64/dotprod"),
        ("arm64", "Features : fp asimd", "aarch64/neon"),
        ("riscv64", "isa : rv64imafdc", "riscv64/generic"),
    ],
)
def test_class_of_flags(tmp_path: Path, machine: str, line: str, expected: str) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor : 0\n{line}\n\nprocessor : 1\nflags : nothing\n")
    assert cpu_class(cpuinfo, machine) == expected


def test_unreadable_flags_give_the_safest_class(tmp_path: Path) -> None:
    assert cpu_class(tmp_path / "none", "x86_64") == "x86-64/sse"
    assert sums_saturate("x86-64/sse")


def test_only_x86_without_vnni_saturates() -> None:
    assert sums_saturate("x86-64/avx512")
    assert sums_saturate("x86-64/avx2")
    assert not sums_saturate("x86-64/avx512-vnni")
    assert not sums_saturate("x86-64/avx-vnni")
    assert not sums_saturate("aarch64/neon")


def test_another_class_is_refused_by_name() -> None:
    require_cpu_class(None, "model")
    require_cpu_class(cpu_class(), "model")
    with pytest.raises(CpuClassMismatch, match=r"small int8.*x86-64/avx2.*aarch64/i8mm"):
        require_cpu_class("x86-64/avx2", "small int8", found="aarch64/i8mm")
