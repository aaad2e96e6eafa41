"""Compile: the released variant for machines that do not run ONNX files, proven against the answers of ONNX Runtime."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from model_registry.store import Store
from model_registry.target_form import Target, TargetForm, save_target
from model_registry.variant import Frozen, Variant
from tasks.evidence.split_inputs import split_inputs
from tasks.running.errors import SpecError, TargetUnsupported
from tasks.running.policy import step
from tasks.running.splits import DataRef
from tasks.running.stage import Job, Outcome, Stage
from tasks.running.stage_cache import run_stage

_LIBRARIES = {"xla": ("jax",), "fpga": ("da4ml",)}
"""What a target needs to be installed, by pip."""
_PROGRAMS = {"fpga": ("verilator", "g++", "make")}
"""And from the system."""


class CompileSpec(Frozen):
    """What to compile for, and how to compare."""

    target: Target
    batch: int = 64


STAGE = Stage(
    name="compile",
    entry="tasks.compile.compile_child:main",
    libraries=("onnx", "onnxruntime", "numpy"),
    device_matters=False,
    workload_matters=False,
    cpu_class_matters=True,
)


def require_targets(targets: Sequence[Target], *, counts_luts: bool = False) -> None:
    """Refuse targets whose libraries or machine are not there; called before anything is trained.

    Args:
        counts_luts: a budget limits the look-up tables of an FPGA.

    Raises:
        SpecError: names what to install, or what the machine lacks.
    """
    if counts_luts and find_spec("da4ml") is None:
        raise SpecError(
            "budget.max_luts needs da4ml, which is not installed: pip install 'winnow-mlops[fpga]', or remove it"
        )
    for target in targets:
        absent = [name for name in _PROGRAMS.get(target, ()) if shutil.which(name) is None]
        if absent:
            raise SpecError(
                f"targets: {target} needs {', '.join(absent)}, which this machine does not have: "
                f"apt install {' '.join(absent)}, or remove it from targets"
            )
        missing = [name for name in _LIBRARIES.get(target, ()) if find_spec(name) is None]
        if missing:
            raise SpecError(
                f"targets: {target} needs {', '.join(missing)}, which is not installed: "
                f"pip install 'winnow-mlops[{target}]', or remove it from targets"
            )
        _gpu_of(target)


@step(STAGE)
def compile_target(job: Job, target: Target, *, data: DataRef, variant: Variant) -> Outcome:
    """Compile an ONNX variant, and compare its answers to the whole test split with those of ONNX Runtime.

    A form that cannot be made, or that answers otherwise, is no error: :func:`target_form` says why there is none.

    Files: ``model.stablehlo`` (see :mod:`tasks.compile.xla_program`), ``rtl.tar.gz``
    (:mod:`tasks.compile.fpga_target`), ``first.onnx``, ``second.onnx`` and ``second.py``
    (:mod:`tasks.compile.halves_target`), or ``model.onnx`` and ``variant.json`` (:mod:`tasks.compile.gpu_target`).

    Values: ``form``, a TargetForm.
    """
    split = split_inputs(job, data)["test"]
    extra: dict[str, Any] = {"inputs": split.model_dump(mode="json")}
    if gpu := _gpu_of(target):
        extra["gpu"] = gpu
    spec = CompileSpec(target=target)
    stage = replace(STAGE, libraries=(*STAGE.libraries, *_LIBRARIES.get(target, ())))
    try:
        outcome = run_stage(stage, job, spec, data=data, inputs={"variant": variant}, extra=extra, label=target)
    except TargetUnsupported as refusal:
        form = TargetForm(target=target, digest=variant.digest, state="refused", reason=refusal.message)
        save_target(Store(job.store), form)
        raise
    save_target(Store(job.store), target_form(outcome))
    return outcome


def _gpu_of(target: Target) -> str:
    """Class of the GPU that the target runs on; '' for targets that need none."""
    if target not in ("cuda", "tensorrt"):
        return ""
    provider = importlib.import_module("tasks.compile.gpu_provider")  # imports onnxruntime
    found: str = provider.require_gpu(target)
    return found


def target_form(outcome: Outcome) -> TargetForm:
    """The form in an outcome of :func:`compile_target`."""
    return TargetForm.model_validate(outcome.values["form"])
