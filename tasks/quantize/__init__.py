"""Quantize: an fp32 ONNX variant becomes int8 ones, for the int8 instructions of this class of CPU, or smaller ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, Self

from pydantic import Field, model_validator

from model_registry.decoder_form import KvCache
from model_registry.form_name import form_name, name_parts
from model_registry.variant import Frozen, Variant
from tasks.evidence.split_inputs import split_inputs
from tasks.running.policy import step
from tasks.running.splits import DataRef
from tasks.running.stage import Job, Outcome, Stage
from tasks.running.stage_cache import run_stage


class AccuracyControl(Frozen):
    """Layers that cost too much accuracy stay in fp32: how much is too much."""

    max_drop: float = Field(
        ge=0,
        allow_inf_nan=False,
        description="how much worse than the fp32 parent the workload's metric may be on the validation split, in the "
        "metric's unit (0.01 of an accuracy is one point)",
    )
    samples: int = Field(
        default=300,
        ge=1,
        le=100_000,
        description="number of validation rows that layers are ranked on; those where fp32 and int8 differ most",
    )


Method = Literal["static", "symmetric", "dynamic", "weights8", "weights4", "mixed", "fp16", "bf16"]


class QuantizeSpec(Frozen):
    """Quantization with ONNX Runtime, after training."""

    methods: tuple[Method, ...] = Field(
        default=("static", "dynamic"),
        min_length=1,
        description="variants to make. static: int8 weights and activations, with ranges from the calibration split. "
        "symmetric: the same with zero points of 0 and float biases, as TensorRT and NPUs take it; "
        "slower on CPUs. dynamic: int8 MatMul and Gemm only, each row by its own range at run time. weights8, "
        "weights4: weights only, for size (convolutions, and in weights8 small products, are int8 in the file and run "
        "in fp32). mixed: of a language model, weights in 8 and 4 bits to the size max_bytes, in 4 where that does "
        "least damage. fp16: for accelerators; smaller but not faster on CPUs. bf16: skipped while ONNX Runtime cannot "
        "run it on CPUs",
    )
    max_bytes: int | None = Field(
        default=None,
        gt=0,
        description="size of the file that mixed makes, in bytes, at most; absent: budget.max_bytes",
    )
    calibration_samples: int = Field(
        default=256,
        ge=16,
        le=100_000,
        description="number of rows of the calibration split to use, drawn evenly over the classes",
    )
    calibration_method: Literal["minmax", "percentile", "entropy", "auto"] = Field(
        default="minmax",
        description="how static and symmetric find the range of an activation; auto: minmax, unless another one "
        "is nearer to fp32 on the calibration rows",
    )
    percentile: float = Field(
        default=99.99,
        gt=50,
        le=100,
        description="share of the values that lie inside the range, in percent, for calibration_method percentile",
    )
    per_channel: bool = Field(
        default=True, description="use a scale for each output channel of a weight instead of one for all"
    )
    scales: Literal["any", "power_of_two"] = Field(
        default="any",
        description="for static and symmetric: power_of_two raises each scale to the next power of two, which costs "
        "a little accuracy; hardware shifts then instead of multiplying (targets: fpga)",
    )
    tables: Literal[4, 8] = Field(
        default=8,
        description="number of bits of tables that are looked up, such as those of tokens, in static, symmetric, "
        "dynamic and weights8 (in weights4 always 4)",
    )
    vocabulary: Literal["all", "train"] = Field(
        default="all",
        description="rows that tables of tokens keep. train: those of ids in the training split, the first of all "
        "others until the calibration rows miss hardly any, and one for the rest; the ids stay as they are",
    )
    kv_cache: KvCache = Field(
        default="float32",
        description="type of the keys and values that a decoder keeps of each token it has read. int8: a quarter of "
        "the memory and faster steps behind long texts, but slower long prompts; each channel by a scale from the "
        "calibration split",
    )
    equalize: bool = Field(
        default=False,
        description="equalize the ranges of channels across neighbouring layers first, which helps depthwise "
        "convolutions; the fp32 function stays the same",
    )
    bias_correction: bool = Field(
        default=False,
        description="for static and symmetric: correct the biases by what rounding shifts on average, where that helps",
    )
    accuracy_control: AccuracyControl | None = Field(
        default=None, description="keep the layers in fp32 that cost too much accuracy; absent: quantize all of them"
    )

    @model_validator(mode="after")
    def _mixed_to_a_size(self) -> Self:
        if "mixed" in self.methods and self.max_bytes is None:
            raise ValueError(
                "methods has mixed, which needs a size: say max_bytes here or in the budget, such as 95_000_000"
            )
        if self.max_bytes is not None and "mixed" not in self.methods:
            raise ValueError(
                f"max_bytes {self.max_bytes} is the size that mixed makes, and methods has none; add mixed, or limit "
                "the size of all files by budget.max_bytes"
            )
        return self


STAGE = Stage(
    name="quantize",
    pool="numbers",
    entry="tasks.quantize.quantize_child:main",
    libraries=("onnxruntime", "onnx", "numpy"),
    device_matters=False,
    cpu_class_matters=True,
)


@step(STAGE)
def quantize(job: Job, spec: QuantizeSpec, *, data: DataRef, parent: Variant, label: str = "") -> Outcome:
    """Make ``<model>.int8-static`` and ``<model>.int8-dynamic`` of ``<model>.fp32`` or a user's own ONNX file.

    Other methods give ``<model>.int8-symmetric``, ``<model>.weights8``, ``<model>.weights4``, ``<model>.mixed`` and
    ``<model>.fp16``.

    Args:
        label: instead of the model's name, where one parent is quantized in several ways.

    Roles: the methods that made something.

    Values: ``variants`` by digest (``name``, ``parameters``, ``macs``, ``bytes``, ``quantized`` and ``quantizable``
    layers, ``share`` of the multiply-accumulates in int8 (or int4, fp16), ``fp32_layers``, ``agreement`` with the
    parent on the calibration rows; of ``mixed`` also ``groups`` of weights, by name: ``bits``, ``block``, ``bytes``,
    ``damage`` in nats a token), ``skipped`` (method to reason), ``warnings``, ``calibration_rows``,
    ``reduce_range``; ``trimmed`` tables (``table``, ``input``, ``rows``, ``kept``, share of ``unknown`` ids);
    ``calibration_method`` used by static, and ``calibration_errors`` where it was chosen (those of symmetric in
    ``symmetric``); ``equalization``,
    ``bias_correction`` and ``accuracy_control`` (by method: ``steps``, ``fp32_groups``, ``fp32_share`` of the
    multiply-accumulates, ``drop``) where they are asked for.

    Raises:
        CalibrationError: too few calibration rows, rows that are not finite or of another scale than those of training.
        ParityFailed: accuracy control meets a metric that is not a finite number.
    """
    stored = split_inputs(job, data)
    needed = {"rows": "calibration"} | ({"validation": "validation"} if spec.accuracy_control else {})
    entries = {key: stored.get(split) for key, split in needed.items()}
    extra = {key: entry.model_dump(mode="json") if entry else None for key, entry in entries.items()}
    name = label or name_parts(parent.name)[0]
    stage = replace(STAGE, yields=tuple(form_name(name, method) for method in spec.methods), roles=spec.methods)
    named = {"label": label} if label else {}
    return run_stage(stage, job, spec, data=data, inputs={"parent": parent}, extra=extra | named, label=name)
