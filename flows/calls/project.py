"""A model in hand as a project on disk: workload, spec, source, weights and data. Equal content lies in one place."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_registry.manifest import canonical_json, describe_folder, hash_bytes
from tasks.running.errors import SpecError

if TYPE_CHECKING:
    from torch import nn

    from tasks.running.splits import Columns
    from tasks.running.task_kind import TaskKind
    from tasks.torch_models.model_in_hand import ModelInHand
    from tasks.workloads.workload import Metric

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_FUNCTION = {
    "preprocess": (
        'def preprocess(self, inputs):\n        """Raw inputs to what the model takes; part of the exported file."""',
        "",
    ),
    "augment": (
        'def augment(self, inputs, generator):\n        """Random changes of a training batch, before preprocess."""',
        ", generator",
    ),
}


def write_project(
    model: nn.Module,
    data: Mapping[str, Any],
    *,
    name: str | None,
    task: TaskKind | None,
    spec: Mapping[str, Any],
    labels: Sequence[str] | None,
    functions: Mapping[str, Callable[..., Any] | None],
    metric: Metric | None,
    arguments: Mapping[str, Any] | None,
) -> Path:
    """Write everything that is needed to compress the model in other processes; returns the spec's path.

    Args:
        data: by split; ``calibration`` may be None and is then taken out of train.
        task: what is learned; None where targets and answers say it.
        functions: ``preprocess``, ``augment``, ``loss``; None where there is none.

    Raises:
        SpecError: the name cannot name a model.
        WorkloadError, DataReadError: as :func:`winnow.compress`.
    """
    from tasks.data.materialise import storable
    from tasks.torch_models.model_in_hand import input_names, write_model
    from tasks.workloads.data_in_hand import as_columns, hold_out
    from tasks.workloads.live_source import LiveSource

    name = name or type(model).__name__.lower()
    if not _NAME.fullmatch(name):
        raise SpecError(f"name {name!r} cannot name a model: use letters, digits, '_', '.' and '-', at most 64")
    inputs = input_names(model)
    splits = {s: as_columns(d, inputs, labels=labels, what=s) for s, d in data.items() if d is not None}
    if "calibration" not in splits:
        splits["train"], splits["calibration"] = hold_out(splits["train"])
    splits = storable(splits)  # float64 becomes float32, as the pipeline computes
    source = LiveSource()
    paths = {what: source.add(function, what) for what, function in functions.items() if function is not None}
    if metric is not None:
        paths["metric"] = source.add(metric.per_sample, "metric.per_sample")
    home = Path(os.environ.get("WINNOW_HOME", ".winnow")).absolute() / "projects"
    home.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".partial-", dir=home))
    try:
        made = write_model(
            model,
            draft,
            sample=splits["validation"],
            preprocess=_preprocessing(functions["preprocess"], inputs),
            arguments=arguments,
            source=source,
        )
        source.write(draft)
        (draft / "workload.py").write_text(_workload_text(name, made, inputs, paths, metric, labels), encoding="utf-8")
        _write_data(draft / "data", splits)
        (draft / "spec.yaml").write_text(_spec_text(name, task, spec), encoding="utf-8")
        return _settle(draft, home, name) / "spec.yaml"
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _settle(draft: Path, home: Path, name: str) -> Path:
    """Move the draft to where its content says it belongs; what lies there already is the same."""
    content = hash_bytes(canonical_json([[entry.path, entry.sha256] for entry in describe_folder(draft)]))
    project = home / f"{name}-{content[:12]}"
    if not project.exists():
        try:
            draft.rename(project)
        except OSError:  # another process was faster
            if not project.exists():
                raise
    return project


def _preprocessing(function: Callable[..., Any] | None, inputs: tuple[str, ...]) -> Callable[[Any], Any]:
    if function is None:
        return lambda given: given
    if len(inputs) == 1:
        return lambda given: {inputs[0]: function(given[inputs[0]])}
    return function


def _write_data(folder: Path, splits: Mapping[str, Columns]) -> None:
    from tasks.data.materialise import npz_bytes

    folder.mkdir()
    for split, columns in splits.items():
        (folder / f"{split}.npz").write_bytes(npz_bytes(columns))


def _workload_text(
    name: str,
    made: ModelInHand,
    inputs: tuple[str, ...],
    paths: Mapping[str, str],
    metric: Metric | None,
    labels: Sequence[str] | None,
) -> str:
    modules = sorted({*made.modules, *(path.rpartition(".")[0] for path in paths.values())})
    imports = "\n".join(f"import {module}" for module in modules)
    lines = [
        f'"""{name}, as it was given to winnow.compress. Yours to keep and to change: winnow run spec.yaml"""',
        "",
        *([imports, ""] if imports else []),
        "import winnow",
        "",
        "",
        "class Project(winnow.ArrayWorkload):",
        "    def model(self, role):",
        f"        return {made.expression}",
    ]
    for what, (head, more) in _FUNCTION.items():
        if what in paths:
            if len(inputs) == 1:
                call = f'{{"{inputs[0]}": {paths[what]}(inputs["{inputs[0]}"]{more})}}'
            else:
                call = f"{paths[what]}(inputs{more})"
            lines += ["", f"    {head}", f"        return {call}"]
    if "loss" in paths:
        lines += ["", "    def loss(self, outputs, targets):", f"        return {paths['loss']}(outputs, targets)"]
    if metric is not None:
        call = f"winnow.Metric({metric.name!r}, {metric.better!r}, {paths['metric']})"
        lines += ["", "    def metric(self):", f"        return {call}"]
    if labels is not None:
        lines += ["", "    def labels(self):", f"        return {[str(label) for label in labels]!r}"]
    return "\n".join(lines) + "\n"


def _spec_text(name: str, task: TaskKind | None, spec: Mapping[str, Any]) -> str:
    import yaml

    from tasks.torch_models.model_in_hand import WEIGHTS

    document = {
        "schema": 1,
        "model": name,
        "workload": {"path": "workload:Project", "arguments": {"data": "data"}} | ({"task": task} if task else {}),
        "teacher": {"weights": WEIGHTS},
        **spec,
    }
    return "# winnow run spec.yaml\n" + yaml.safe_dump(document, sort_keys=False)
