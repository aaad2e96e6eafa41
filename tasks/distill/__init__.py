"""Distillation: a student learns from the teacher's answers, and its control learns without them."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from model_registry.variant import Frozen, Variant
from tasks.distill.hint_kind import HintKind
from tasks.running.policy import step
from tasks.running.splits import DataRef
from tasks.running.stage import Job, Outcome, Stage
from tasks.running.stage_cache import run_stage


class HintSpec(Frozen):
    """What happens inside the teacher and the student follows, besides its answers."""

    of: HintKind = Field(
        default="features",
        description="features: hidden features (FitNets); attention: how alike the positions of a row are to each "
        "other, by the queries, keys and values of an attention (MiniLM), whatever their widths; a student without "
        "attention learns without hints",
    )
    layers: Literal["auto"] | Annotated[tuple[tuple[str, str], ...], Field(min_length=1)] = Field(
        default="auto",
        description="pairs [module of the teacher, module of the student]; auto: for each resolution of the features "
        "that both have, the last module of each before it changes; of attention the queries, keys and values of the "
        "last one of each",
    )
    weight: float = Field(
        default=1.0,
        gt=0,
        description="weight of the hints in the loss; a hint is 0 for features of the same direction and 2 for "
        "unrelated ones; of attention it is a divergence in nats",
    )


class DistillSpec(Frozen):
    """A smaller student, taught by the teacher."""

    scale: dict[str, Any] = Field(
        default_factory=lambda: {"width": 0.5},
        description="arguments of the workload's model() for the student, such as {width: 0.5}",
    )
    inherit: bool = Field(
        default=False,
        description="start the student with those of the teacher's tensors that have the same name and shape; useful "
        "for a shallower student",
    )
    temperature: Literal["auto"] | Annotated[float, Field(gt=0)] = Field(
        default=2.0,
        description="how much the teacher's probabilities are softened, for classifiers; 1: not at all; auto: the one "
        "of 1, 2, 4 and 8 that does best in a short training",
    )
    alpha: Literal["auto"] | Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.5,
        description="share of the teacher's answers in the loss, 0 to 1 (of a language model, how likely each token of "
        "the vocabulary comes next); 0: the teacher is not asked, 1: the targets are not used; auto: 0.5 or 0.9, tried "
        "with the temperature",
    )
    auto_epochs: float = Field(
        default=0.2, gt=0, le=1, description="length of each short training that auto needs, as a share of the epochs"
    )
    teachers: int = Field(
        default=1,
        ge=1,
        le=16,
        description="number of teachers, trained from seed, seed + 1, ...; the student learns their mean answer",
    )
    hints: HintSpec | None = Field(
        default=None,
        description="hidden features of the teacher to follow too; {}: matched by resolution; absent: only the answers",
    )
    views: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="number of fixed augmentations of the training split, used in turn by epoch; the teacher answers "
        "them once for all students; of a workload without augment() the first one is the rows as they are, and the "
        "others are images moved by a pixel of 28, or mixtures of two rows each that the teacher alone labels; null: "
        "augment() is drawn for each batch and the teacher asked each time",
    )
    control: bool = Field(
        default=True, description="also train the same student without the teacher, to show what the teacher gained"
    )
    epochs: int = Field(
        default=40,
        ge=0,
        description="number of passes over the training split, for student and control each; 0: an untrained student, "
        "no control",
    )
    share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="share of the training rows to learn from, the same ones in every epoch, for a quick look",
    )
    batch_size: int = Field(default=64, ge=2, description="number of rows per step")
    learning_rate: float = Field(default=4e-3, gt=0, description="highest learning rate, reached after the warm-up")
    weight_decay: float = Field(default=0.01, ge=0, description="decay of the weights; biases and norms have none")
    optimizer: Literal["adamw", "sgd"] = Field(default="adamw", description="adamw, or sgd with momentum 0.9")
    schedule: Literal["cosine", "constant"] = Field(
        default="cosine",
        description="how the learning rate falls after the warm-up: along a cosine to 0, or not at all",
    )
    warmup: float = Field(
        default=0.05, ge=0, lt=1, description="share of all steps in which the learning rate rises linearly"
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        description="stop after this number of epochs without a better one; null: never, so that student and control "
        "train equally long",
    )
    amp: Literal["auto", "off", "bf16", "fp16"] = Field(
        default="auto",
        description="mixed precision on CUDA; auto: bf16, or fp16 where the GPU lacks it; a CPU trains in float32",
    )
    deterministic: bool = Field(default=True, description="refuse operations whose result differs from run to run")


STAGE = Stage(
    name="distill",
    trains=True,
    pool="torch",
    entry="tasks.distill.distill_child:main",
    libraries=("torch",),
    yields=("student", "control"),
)


@step(STAGE)
def distill(
    job: Job,
    spec: DistillSpec,
    *,
    data: DataRef,
    teacher: Variant,
    parent: Variant | None = None,
    others: tuple[Variant, ...] = (),
    label: str = "",
) -> Outcome:
    """Train the variants ``student`` and ``control``: same model, seed and budget, with and without the teacher.

    The files ``student.history.jsonl`` and ``control.history.jsonl`` hold their curves. Values: ``student`` and
    ``control`` (each ``parameters``, ``epochs``, ``best_epoch``, ``val_metric``, ``val_loss``, ``first_val_loss``, and
    ``train_metric`` on as many rows of the training split), ``views_of`` (what ``views`` are made by: ``augmented``,
    ``moved``, ``mixed``, or None),
    ``parent`` or, of a fresh student, ``teacher`` (``val_metric``), ``metric`` (its name), and ``gain``: the student's
    metric over the control's on validation, turned so that more is better, with ``gain_interval`` (95 %, paired) and
    ``gain_p``; without control there is no gain. ``chosen`` (``temperature``, ``alpha``), ``tried`` (those and
    ``epochs``, ``val_loss``, ``val_metric`` of each short training), ``epoch_seconds`` (of an epoch of the student),
    ``hints`` (pairs of module names), ``teachers`` (``val_metric`` of each), ``inherited`` (share of the student's
    parameters that began as the teacher's; with ``inherit``), ``scale`` (as it was settled beside the teacher). Where
    labels alone teach (``alpha`` 0, no hints) no teacher is asked and ``teacher`` is absent. An untrained
    student (0 epochs) only has ``parameters``, ``inherited`` and ``row_seconds``, which a row of a training step would
    take, and ``larger`` (``batch_size``, ``row_seconds``): the same with as large a batch as hardly lengthens a step.

    Args:
        parent: a torch variant that is trained further instead of a fresh student; it keeps its structure (role,
            scale, cuts and pruning), and the spec's ``scale`` goes unused.
        others: more teachers, the mean of whose logits with the first's is learned; hints come from the first.
        label: names stage and variant where students are several; the control is then ``control-<label>``.

    Raises:
        TrainingDiverged: the loss became NaN or infinite.
        WorkloadError: the workload's model() does not take the scale.
        SpecError: hints name modules that a model does not have, or that do not go together.
    """
    inputs = {"teacher": teacher, **{f"teacher{number}": other for number, other in enumerate(others, 2)}}
    if parent is not None:
        inputs["parent"] = parent
    names = (
        label or "student",
        *((f"control-{label}" if label else "control",) if spec.control and spec.epochs else ()),
    )
    extra = {"name": label} if label else {}
    return run_stage(replace(STAGE, yields=names), job, spec, data=data, inputs=inputs, extra=extra, label=label)
