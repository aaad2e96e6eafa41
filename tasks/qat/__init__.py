"""Quantization-aware training: a quantized file is trained as it will run, by the teacher, and written again."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from model_registry.form_name import form_name, name_parts
from model_registry.variant import Frozen, Variant
from tasks.running.errors import QatUnsupported
from tasks.running.policy import step
from tasks.running.splits import DataRef
from tasks.running.stage import Job, Outcome, Stage
from tasks.running.stage_cache import run_stage


class QatSpec(Frozen):
    """Quantization-aware training of the statically quantized file; of a language model, of those with 4 bits."""

    epochs: int = Field(default=8, ge=1, description="number of passes over the training split")
    batch_size: int = Field(default=64, ge=2, description="number of rows per step")
    learning_rate: float = Field(
        default=1e-3,
        gt=0,
        description="highest learning rate; the logarithms of the scales are trained with it too. Of a language model "
        "in steps of the grid: 0.03 for a dozen steps, 0.01 for a hundred",
    )
    weight_decay: float = Field(default=0.0, ge=0, description="decay of the weights; biases and scales have none")
    temperature: float = Field(
        default=2.0, gt=0, description="how much the teacher's probabilities are softened; only for classifiers"
    )
    alpha: float = Field(
        default=0.7,
        ge=0,
        le=1,
        description="share of the teacher's answers in the loss (of a language model, how likely each token of the "
        "vocabulary comes next); the rest is the targets'",
    )
    patience: int | None = Field(
        default=None, ge=1, description="stop after this number of epochs without a better one; null: never"
    )


STAGE = Stage(
    name="qat",
    trains=True,
    pool="torch",
    entry="tasks.qat.qat_child:main",
    libraries=("torch", "onnx", "onnxruntime"),
    cpu_class_matters=True,
)


@step(STAGE)
def qat(
    job: Job,
    spec: QatSpec,
    *,
    data: DataRef,
    parent: Variant,
    teacher: Variant,
    float_parent: Variant | None = None,
    label: str = "",
) -> Outcome:
    """Make ``<model>.int8-qat`` of ``<model>.int8-static``; ``<name>.history.jsonl`` holds the curves.

    Of a decoder it makes ``<model>.weights4-qat`` of ``<model>.weights4``, and ``<model>.mixed-qat`` of
    ``<model>.mixed``, of which what has 8 bits stays.

    Args:
        parent: an ONNX file of QuantizeLinear and DequantizeLinear nodes, as static quantization writes it; or a
            decoder's with weights of 4 bits.
        teacher: a torch variant, or an fp32 ONNX one (asked through ONNX Runtime); of a decoder a torch variant.
        float_parent: the fp32 ONNX file that the parent was made of; training then starts at its weights, not at the
            rounded ones. Of a decoder the torch variant, which is needed: it says what the file's weights belong to.

    Values: ``variants`` by digest (``name``, ``parameters``, ``macs``, ``bytes``), ``validation`` (the metric of the
    ``parent`` and of ``qat``, both as ONNX Runtime answers), ``parity`` (see :mod:`tasks.qat.int8_parity`; of a decoder
    the ``largest`` difference of a log-probability in the first ``rows`` of validation), ``float_weights`` (how many of
    the ``layers`` began at unrounded weights) or ``trainable`` (number of weights of 4 bits), and of the training
    ``epochs``, ``best_epoch``, ``val_metric``, ``val_loss``, ``first_val_loss`` (after one epoch), ``stopped_early``.

    Raises:
        QatUnsupported: the file has an operator or a way of quantizing that cannot be trained; or of a decoder, the
            float_parent or the teacher is no torch model, or torch's engines are to train it.
        QatParityFailed: the file written does not answer as the module that was trained, or a decoder's before that.
        TrainingDiverged: the loss became NaN or infinite.
    """
    inputs = {"parent": parent, "teacher": teacher}
    if float_parent is not None:
        inputs["float_parent"] = float_parent
    model = name_parts(parent.name)[0]
    stage = replace(STAGE, yields=(form_name(model, "qat"),))
    if data.language is not None:
        if float_parent is None or float_parent.format != "torch" or teacher.format != "torch":
            raise QatUnsupported(
                f"{parent.name} is a decoder, and what it was made of or its teacher is no torch model; qat needs "
                "both: bring weights, not an ONNX file"
            )
        if job.engine is not None:
            raise QatUnsupported(
                f"qat of {parent.name} with parallel.exact false: torch's engines do not train weights on a grid; use "
                "parallel.shards, or leave parallel out"
            )
        made, label = f"{name_parts(parent.name)[1]}-qat", label or parent.name
        stage = replace(STAGE, entry="tasks.qat.low_bits_child:main", yields=(form_name(model, made),))
    return run_stage(stage, job, spec, data=data, inputs=inputs, label=label or model)
