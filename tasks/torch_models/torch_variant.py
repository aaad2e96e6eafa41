"""A torch model as a variant and back: ``model.safetensors`` and ``architecture.json``, never pickle.

The second file says how to rebuild the module that the tensors fit: the workload, and the structure made of it.
"""

from __future__ import annotations

import inspect
import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from pydantic import Field
from torch import Tensor, nn

from model_registry.datatypes import NUMPY_NAMES, Datatype
from model_registry.store import Store
from model_registry.variant import Record, TensorSpec, Variant
from tasks.running.errors import SpecError, WeightsMismatch, WorkloadChanged, WorkloadError
from tasks.running.source_hash import closure_hash
from tasks.running.splits import Columns
from tasks.torch_models.fit_rows import call_model
from tasks.torch_models.model_structure import ModelStructure, apply_cuts
from tasks.torch_models.pruning_plan import apply_plan
from tasks.workloads.workload import Inputs, Workload

WEIGHTS = "model.safetensors"
ARCHITECTURE = "architecture.json"

_log = logging.getLogger("winnow.variant")
_DTYPES: dict[Datatype, torch.dtype] = {d: getattr(torch, n) for d, n in NUMPY_NAMES.items() if hasattr(torch, n)}
_DATATYPES = {dtype: datatype for datatype, dtype in _DTYPES.items()}
_PROBE_VALUES = 16
_PROBE_SCALES = (1.0, 16.0, 255.0)
"""One probe row of values up to each: whatever range the inputs have, a row is in it or beyond it."""


class Architecture(ModelStructure, Record):
    """``architecture.json``: what to rebuild before the tensors are loaded, and of which workload."""

    workload: str
    """``module:Class``."""
    arguments: dict[str, Any]
    source: str
    """Hash of the workload's source (see tasks/running/source_hash.py) when the variant was saved."""
    tied: dict[str, str] = Field(default_factory=dict)
    """Tensors that are another one under a second name: that name. Stored once."""
    probe: tuple[tuple[float, ...], ...] | None = None
    """The first values of the answers to made-up rows: shows whether changed code still answers the same."""


def build(workload: Workload, role: str, scale: dict[str, Any], *, seed: int = 0) -> nn.Module:
    """A fresh model on the CPU, its initial weights determined by the seed.

    Raises:
        WorkloadError: the workload's ``model`` does not take this scale.
    """
    signature = inspect.signature(workload.user.model)
    try:
        signature.bind(role, **scale)
    except TypeError as error:
        raise WorkloadError(
            f"{workload.ref.path}.model({', '.join(signature.parameters)}) does not take role {role!r} with scale "
            f"{scale}: {error}; a scale has the names of its own parameters"
        ) from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return workload.model(role, **scale)


def save(
    store: Store,
    model: nn.Module,
    *,
    workload: Workload,
    structure: ModelStructure,
    sample: Columns,
    name: str,
    stage: str,
) -> Variant:
    """Publish the model's files and describe them. Equal weights of equal code give an equal digest.

    Args:
        model: what the workload built and was made of it since; it ends on the CPU, in eval mode.
        structure: how the module is made again; that of its parent (see :func:`read_architecture`), with what this
            stage took away.
        sample: columns of at least two rows; only shapes and types of inputs and answers are taken from it.
        name, stage: labels of the variant.
    """
    model.cpu().eval()
    inputs, outputs = tensor_specs(model, workload=workload, sample=sample)
    tensors, tied = untied(model)
    architecture = Architecture(
        workload=workload.ref.path,
        arguments=workload.ref.arguments,
        source=_source(workload),
        tied=tied,
        probe=_probe(model, workload, inputs),
        **{part: getattr(structure, part) for part in ModelStructure.model_fields},
    )
    with tempfile.TemporaryDirectory() as folder:
        safetensors.torch.save_file(tensors, Path(folder) / WEIGHTS)
        (Path(folder) / ARCHITECTURE).write_bytes(architecture.to_json())
        files = store.publish_folder(Path(folder))
    return Variant(name=name, stage=stage, format="torch", files=files, inputs=inputs, outputs=outputs)


def load(store: Store, variant: Variant, *, workload: Workload) -> nn.Module:
    """The variant's model on the CPU, in eval mode, answering bit for bit as when it was saved.

    Raises:
        WorkloadChanged: the workload's code is not that of the variant any more, and it shows.
        SpecError: the variant is an ONNX file.
        CorruptObject, ObjectMissing: as the store raises them.
    """
    architecture = read_architecture(store, variant)
    if (architecture.workload, architecture.arguments) != (workload.ref.path, workload.ref.arguments):
        raise WorkloadChanged(
            f"variant {variant.name!r} ({variant.digest[:12]}) was made by workload {architecture.workload} with "
            f"arguments {architecture.arguments}, this job's is {workload.ref.path} with {workload.ref.arguments}; "
            "use the workload it was made by"
        )
    with tempfile.TemporaryDirectory() as folder:
        tensors = safetensors.torch.load_file(store.fetch(variant.file(WEIGHTS), Path(folder) / WEIGHTS))
        tensors |= {alias: tensors[name] for alias, name in architecture.tied.items()}
        model = build(workload, architecture.role, architecture.scale)
        apply_cuts(model, architecture.cuts)
        if architecture.pruning is not None:
            apply_plan(model, workload.preprocess(made_up_inputs(variant.inputs)), architecture.pruning)
        try:
            load_tensors(model, tensors)
        except WeightsMismatch as error:
            raise _changed(variant, workload, f"its model has other tensors now: {error}") from error
    model.eval()
    _check_source(variant, architecture, model, workload)
    return model


def read_architecture(store: Store, variant: Variant) -> Architecture:
    """The variant's ``architecture.json``; SpecError for a variant that is an ONNX file."""
    if variant.format != "torch":
        raise SpecError(
            f"variant {variant.name!r} is an ONNX file, which cannot be trained further: it enters at quantize; remove "
            "distill and prune from the spec, or bring the weights as safetensors"
        )
    return Architecture.from_json(store.fetch_bytes(variant.file(ARCHITECTURE)))


def parameter_count(model: nn.Module) -> int:
    """Parameters, trainable or frozen; tied ones once, buffers not."""
    return sum(parameter.numel() for parameter in model.parameters())


def load_tensors(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put the tensors into the model, all of them, none converted.

    Raises:
        WeightsMismatch: names each missing, unexpected, wrongly shaped and wrongly typed tensor.
    """
    wanted = model.state_dict()
    missing = sorted(wanted.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - wanted.keys())
    differing = [
        f"{name} is {_kind(tensors[name])} and must be {_kind(value)}"
        for name, value in wanted.items()
        if name in tensors and _kind(tensors[name]) != _kind(value)
    ]
    if missing or unexpected or differing:
        parts = [
            f"{label}: {', '.join(names)}"
            for label, names in (("missing", missing), ("unexpected", unexpected), ("wrong", differing))
            if names
        ]
        raise WeightsMismatch(
            "the weights do not fit the model; " + "; ".join(parts),
            missing=missing,
            unexpected=unexpected,
            wrong=differing,
        )
    model.load_state_dict(tensors)


def untied(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The model's tensors, each once and in memory of its own, and the second names of those that have several."""
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, value in model.state_dict().items():
        place = (value.data_ptr(), value.shape, value.stride(), value.dtype)
        if value.numel() and place in seen:
            tied[name] = seen[place]
        else:
            seen[place] = name
            tensors[name] = value.detach().clone(memory_format=torch.contiguous_format)
    return tensors, tied


def tensor_specs(
    model: nn.Module, *, workload: Workload, sample: Columns
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Raw inputs (before preprocessing) and the output as they are served, the batch free.

    The output of a classifier (integer targets, one score per class) is ``logits``, of anything else ``prediction``.
    """
    inputs, targets = _two_rows(workload, sample)
    with torch.no_grad():
        answer = call_model(model, workload.preprocess(dict(inputs)))
    classifies = not targets.is_floating_point() and answer.ndim == 2
    return input_specs(workload, sample), (_spec("logits" if classifies else "prediction", answer, {}),)


def input_specs(workload: Workload, sample: Columns) -> tuple[TensorSpec, ...]:
    """The raw inputs that the workload's ``batch`` gives, the batch and the workload's dynamic dimensions free."""
    free = workload.dynamic_dims()
    return tuple(_spec(name, value, free.get(name, {})) for name, value in _two_rows(workload, sample)[0].items())


def made_up_inputs(specs: tuple[TensorSpec, ...], *, free: int = 7) -> Inputs:
    """Raw inputs of three rows with made-up values, the same ones each time; free dimensions have size ``free``.

    Whole numbers are 0 or 1: they may be indices, of which only the first are sure to be there.
    """
    made: Inputs = {}
    for spec in specs:
        generator = np.random.Generator(np.random.PCG64(0))
        shape = [free if size == -1 else size for size in spec.shape[1:]]
        rows = [generator.random(shape) * scale for scale in _PROBE_SCALES]
        dtype = _DTYPES[spec.datatype]
        values = torch.from_numpy(np.stack(rows))
        made[spec.name] = values.to(dtype) if dtype.is_floating_point else (values / 255 > 0.5).to(dtype)
    return made


def _two_rows(workload: Workload, sample: Columns) -> tuple[Inputs, Tensor]:
    return workload.batch({name: torch.from_numpy(np.ascontiguousarray(v[:2])) for name, v in sample.items()})


def _spec(name: str, value: Tensor, free: dict[int, str]) -> TensorSpec:
    if value.dtype not in _DATATYPES:
        raise WorkloadError(
            f"{name!r} has dtype {value.dtype}, which no endpoint speaks; use one of {list(_DATATYPES)}"
        )
    shape = tuple(-1 if dim == 0 or dim in free else size for dim, size in enumerate(value.shape))
    return TensorSpec(name=name, datatype=_DATATYPES[value.dtype], shape=shape)


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _source(workload: Workload) -> str:
    return closure_hash(workload.ref.path.partition(":")[0], workload.ref.folder)


def _probe(
    model: nn.Module, workload: Workload, inputs: tuple[TensorSpec, ...]
) -> tuple[tuple[float, ...], ...] | None:
    """The first values of each answer to made-up rows; None where the model cannot take such rows."""
    try:
        with torch.no_grad():
            answers = call_model(model, workload.preprocess(made_up_inputs(inputs)))
    except (WorkloadError, RuntimeError, ValueError, IndexError, TypeError, KeyError) as error:
        _log.info("no probe is kept: the model does not take made-up inputs: %s", error)
        return None
    if not torch.isfinite(answers).all():
        return None
    return tuple(tuple(float(v) for v in row.flatten()[:_PROBE_VALUES]) for row in answers)


def _check_source(variant: Variant, architecture: Architecture, model: nn.Module, workload: Workload) -> None:
    """Accept changed code only if the rebuilt model answers made-up rows as the saved one did."""
    source = _source(workload)
    if source == architecture.source:
        return
    if architecture.probe is None:
        raise _changed(variant, workload, "whether that matters cannot be told: no probe was kept")
    probe = _probe(model, workload, variant.inputs)
    if probe is None or len(probe) != len(architecture.probe):
        raise _changed(variant, workload, "it does not take the inputs any more that it took")
    for then, now in zip(architecture.probe, probe, strict=True):
        # Not bit for bit: another machine adds up in another order.
        if len(then) != len(now) or not np.allclose(now, then, rtol=1e-3, atol=1e-3 * max(1.0, *map(abs, then))):
            raise _changed(variant, workload, f"it answers otherwise: {now[:4]}... instead of {then[:4]}...")
    _log.info("the workload's code changed since variant %s was saved, its answers did not", variant.name)


def _changed(variant: Variant, workload: Workload, how: str) -> WorkloadChanged:
    return WorkloadChanged(
        f"variant {variant.name!r} ({variant.digest[:12]}) was made by other code of workload {workload.ref.path}: "
        f"{how}. Restore that code, or run the pipeline again"
    )
