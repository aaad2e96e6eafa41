"""PipelineSpec: one YAML file says the whole run. Unknown keys are refused, and all errors are reported at once."""

from __future__ import annotations

import difflib
import importlib.util
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator

from flows.searching.budget_spec import BudgetSpec, Objective, SearchSpec
from flows.spec_budget import SAME, budgeted, is_older_name, said
from flows.yaml_document import plain_document, read_yaml
from model_registry.target_form import Target
from model_registry.variant import Frozen, ModelName
from tasks.data import DataSpec
from tasks.distill import DistillSpec
from tasks.export import ExportSpec
from tasks.measure import MeasureSpec
from tasks.prune import PruneSpec
from tasks.qat import QatSpec
from tasks.quantize import QuantizeSpec
from tasks.release.deployment import DeploySpec
from tasks.rival import RivalSpec
from tasks.running.errors import SpecError
from tasks.running.source_hash import FACE, public_names, public_place
from tasks.running.stage import Limits, Parallel, Place, WorkloadRef
from tasks.train import BringSpec, TrainSpec
from tasks.validate import GateSpec

_log = logging.getLogger("winnow.spec")
SPECS = Path(__file__).parent / "specs"
_REMOVED = {"tune"}
"""Sections of older specs: they still load."""
STAGES = Literal[
    "data",
    "rehearse",
    "train",
    "bring",
    "sensitivity",
    "latency_table",
    "ask",
    "distill",
    "prune",
    "cut",
    "export",
    "quantize",
    "qat",
    "allocate",
    "clock",
    "continue",
    "measure",
    "rival",
    "validate",
    "compile",
]


class PipelineSpec(Frozen):
    """A run: the workload, what to do with it, and what the result must keep."""

    schema_version: Literal[1] = Field(default=1, alias="schema", description="version of this format")
    model: ModelName = Field(description="name of the model in the registry, the ledger and the endpoint")
    workload: WorkloadRef = Field(description="the class that gives model, data, loss and metric")
    seed: int = Field(default=0, ge=0, description="seed of everything that is random")
    device: Literal["auto", "cpu", "cuda", "tpu"] = Field(
        default="auto",
        description="where to train; auto: on a GPU, else on a TPU, if there is one. Training on a TPU "
        "takes torch-tpu and was tried on none",
    )
    parallel: Parallel | None = Field(
        default=None,
        description="share each training out among processes, with the same result on any number of them (not with "
        "exact: false); absent: a training is one process with a thread for each core",
    )
    place: Place = Field(
        default="local",
        description="where the stages' processes run: on this machine, or on the nodes of the Ray cluster of "
        "RAY_ADDRESS; measurements stay on this machine, unless measure_on says otherwise. The results are the same",
    )
    measure_on: str | None = Field(
        default=None,
        min_length=1,
        description="machines that latencies are measured on, by CPU and number of cores: AMD EPYC 7B13, 8 cores "
        "(`winnow doctor` says what this one is called). With place: ray those nodes of the cluster, one measurement "
        "at a time on each; else this machine must be one. What was measured on another one is not used again",
    )
    data: DataSpec = Field(
        default_factory=DataSpec, description="what the data must satisfy before anything is trained"
    )
    teacher: BringSpec | None = Field(
        default=None, description="weights that are trained already, instead of training the teacher"
    )
    train: TrainSpec | None = Field(default=None, description="how the teacher is trained; absent: with the defaults")
    distill: DistillSpec | None = Field(
        default=None, description="make a smaller student; absent: skipped, {}: with the defaults"
    )
    prune: PruneSpec | None = Field(default=None, description="remove channels; absent: skipped, {}: with the defaults")
    export: ExportSpec = Field(default_factory=ExportSpec, description="how models become ONNX files")
    quantize: QuantizeSpec | None = Field(
        default=None, description="make int8 variants; absent: skipped, {}: with the defaults"
    )
    qat: QatSpec | None = Field(
        default=None,
        description="quantization-aware training of the static int8 variants, of a language model of weights4 and "
        "mixed; absent: skipped",
    )
    budget: BudgetSpec | None = Field(default=None, description="what the chosen variant may cost and lose; any subset")
    objective: Objective = Field(
        default="both",
        description="what counts among the variants inside the budget: latency and size together (to halve either is "
        "worth the same), lowest latency, smallest file, most samples per second, or front: every one that no other "
        "beats at accuracy, latency and size, registered as one set",
    )
    search: SearchSpec | None = Field(
        default=None, description="look for the best variant inside the budget instead of making one by given ratios"
    )
    measure: MeasureSpec = Field(default_factory=MeasureSpec, description="how variants are measured")
    rival: RivalSpec | None = Field(
        default=None,
        description="train gradient-boosted trees on the same table, for the report; absent: skipped, {}: with the "
        "defaults. Of texts it is a bag of words, and always trained",
    )
    gates: GateSpec = Field(default_factory=GateSpec, description="what the chosen variant must keep")
    deploy: DeploySpec | Literal[False] = Field(
        default_factory=DeploySpec,
        description="when the endpoint takes the new version; false: stop after registration and leave the endpoint "
        "alone",
    )
    targets: tuple[Target, ...] = Field(
        default=(),
        description="other machines that the released variant is compiled for, each form proven against the answers of "
        "ONNX Runtime to the whole test split. xla: StableHLO for TPUs, GPUs and CPUs. fpga: Verilog, "
        "for small int8 models with scales that are powers of two. halves: two ONNX files in a row, for a model that "
        "fits no single machine. cuda, tensorrt: the file on this machine's GPU, by ONNX Runtime",
    )
    limits: dict[STAGES, Limits] = Field(default_factory=dict, description="time and memory limits by stage")

    @model_validator(mode="before")
    @classmethod
    def _budget_is_gates(cls, document: Any) -> Any:
        """What the budget says reaches the stages that look at it."""
        return budgeted(_without_removed(document)) if isinstance(document, dict) else document

    @model_validator(mode="after")
    def _one_teacher(self) -> Self:
        if self.teacher is not None and self.train is not None:
            raise ValueError("teacher and train exclude each other: weights are either brought or trained; remove one")
        if self.teacher is not None and self.teacher.is_onnx and self.export.threads != 1:
            raise ValueError(
                f"{self.export.threads} threads are asked for, and the ONNX file {self.teacher.weights!r} is run with "
                "one: it is not exported here; remove budget.threads"
            )
        if self.teacher is not None and self.distill is not None and self.distill.teachers > 1:
            raise ValueError(
                f"distill.teachers {self.distill.teachers} are trained from as many seeds, and the teacher is brought; "
                "train it here, or remove distill.teachers"
            )
        later = [name for name in ("distill", "prune") if getattr(self, name) is not None]
        if self.teacher is not None and self.teacher.is_onnx and later:
            raise ValueError(
                f"teacher.weights {self.teacher.weights!r} is an ONNX file, which enters at quantize and cannot be "
                f"trained; remove {' and '.join(later)}"
            )
        return self


def _without_removed(document: dict[str, Any]) -> dict[str, Any]:
    """The document of an older version without the sections that are gone; nothing they asked for is needed."""
    for section in _REMOVED & set(document):
        _log.warning("the section %r of the spec does nothing any more and is ignored; remove it", section)
    return {key: value for key, value in document.items() if key not in _REMOVED}


def load_spec(source: str | Path, overrides: Sequence[str] = ()) -> PipelineSpec:
    """Read a spec from a YAML file, or a shipped one by name, and apply ``a.b=c`` overrides.

    Raises:
        SpecError: names every wrong key with its value, the rule and the fix.
    """
    path = Path(source)
    if not path.is_file() and not path.suffix and (SPECS / f"{source}.yaml").is_file():
        path = SPECS / f"{source}.yaml"
    if not path.is_file():
        shipped = ", ".join(sorted(p.stem for p in SPECS.glob("*.yaml")))
        raise SpecError(f"there is no spec {str(source)!r}: give a YAML file, or one of the shipped specs: {shipped}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError(f"{path} is not text in UTF-8: {error}; save it in UTF-8") from error
    document = read_yaml(text, str(path))
    if not isinstance(document, dict):
        raise SpecError(f"{path} must hold keys and values at its top level; it holds {type(document).__name__}")
    return parse_spec(document, str(path), overrides, folder=path.parent)


def parse_spec(
    document: dict[str, Any], where: str, overrides: Sequence[str] = (), *, folder: Path | None = None
) -> PipelineSpec:
    """Validate a document; raises SpecError with every error at once.

    Args:
        where: it came from, for messages.
        overrides: changes such as ``prune.ratio=0.2``.
        folder: where its workload is looked for, and where relative paths start.
    """
    document = plain_document(document, where)
    for override in overrides:
        _apply(document, override)
    workload = document.get("workload")
    if isinstance(workload, str):
        document["workload"] = workload = {"path": workload}
    if isinstance(workload, dict):
        if folder is not None:
            workload.setdefault("folder", str(folder.absolute()))
        workload["path"] = _where_defined(workload.get("path"))
    try:
        spec = PipelineSpec.model_validate(document)
        plain_document(spec.model_dump(by_alias=True), where)  # texts may have become numbers: 1e999, nan
        return spec
    except ValidationError as error:
        # What the budget says is also at its older name by now: reported once, as it was written.
        copied = {gate for wish, gate in SAME.items() if said(document, wish) is not None}
        lines = [_explain(d) for d in error.errors() if ".".join(map(str, d["loc"])) not in copied]
        # A union reports the same key once for each of its members.
        raise SpecError(
            f"{where} is not a valid spec:\n" + "\n".join(f"  {line}" for line in dict.fromkeys(lines))
        ) from error


def _where_defined(path: Any) -> Any:
    """``winnow:Images`` as the module that defines it, so that a class has one name in every key and record."""
    module, colon, name = path.partition(":") if isinstance(path, str) else ("", "", "")
    if module != FACE or not colon:
        return path
    place = public_place(name)
    if place is None:
        raise SpecError(f"workload.path {path!r}: winnow has no class {name!r}; it has {', '.join(public_names())}")
    return ":".join(place)


def _apply(document: dict[str, Any], override: str) -> None:
    keys, separator, text = override.partition("=")
    path = keys.split(".")
    if not separator or not all(path):
        raise SpecError(f"--set {override!r} must look like prune.ratio=0.2")
    value = read_yaml(text, f"--set {override!r}: the value")
    here = document
    for key in path[:-1]:
        if not isinstance(here.get(key), dict):
            # `workload: a:B` is short for {path: a:B}; anything else in the way is replaced by a section.
            here[key] = {"path": here[key]} if key == "workload" and isinstance(here.get(key), str) else {}
        here = here[key]
    here[path[-1]] = value


def _explain(detail: Any) -> str:
    unknown = detail["type"] == "extra_forbidden"  # then the last part is what the user wrote, whatever it looks like
    loc = detail["loc"]
    location = [part for n, part in enumerate(loc, 1) if not _is_union_tag(part) or (unknown and n == len(loc))]
    key = ".".join(str(part) for part in location) or "the spec"
    if unknown:
        allowed = _keys_at([str(part) for part in location[:-1]])
        near = difflib.get_close_matches(str(location[-1]), allowed, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys here: {', '.join(allowed)}"
        return f"{key}: unknown key; {hint}"
    if detail["type"] == "missing":
        return f"{key}: is missing; add it"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{key}: {detail['input']!r} is refused: {message}" if location else message


def _is_union_tag(part: object) -> bool:
    text = str(part)
    return text.endswith("Spec") or text.startswith(("literal[", "constrained-", "function-"))


def _keys_at(location: list[str]) -> list[str]:
    model: type[BaseModel] = PipelineSpec
    for part in location:
        field = next((f for n, f in model.model_fields.items() if part in (n, f.alias)), None)
        inner = (field.annotation, *get_args(field.annotation)) if field else ()
        models = [a for a in inner if isinstance(a, type) and issubclass(a, BaseModel)]
        if not models:
            return []
        model = models[0]
    return [field.alias or name for name, field in model.model_fields.items() if not is_older_name(field)]


def resolve_device(device: str) -> str:
    """``auto`` becomes ``cuda`` or ``tpu`` where there is the device file of one, without importing torch."""
    if device != "auto":
        return device
    if Path("/dev/nvidia0").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
        return "cuda"
    tpu = any(Path(file).exists() for file in ("/dev/accel0", "/dev/vfio/0"))
    return "tpu" if tpu and importlib.util.find_spec("torch_tpu") is not None else "cpu"
