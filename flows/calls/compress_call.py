"""``winnow.compress``: a model in hand, a budget, and what comes out is in service."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flows.calls.run_call import Overrides, run_spec
from flows.calls.run_result import RunResult
from flows.calls.stack_calls import reach_servers
from model_registry.measurement import Objective
from tasks.running.task_kind import TaskKind

if TYPE_CHECKING:
    from torch import nn

    from tasks.workloads.workload import Metric


def compress_model(
    model: nn.Module,
    train: Any,
    validation: Any,
    test: Any,
    *,
    budget: Mapping[str, Any],
    objective: Objective = "both",
    minutes: float = 20.0,
    name: str | None = None,
    calibration: Any = None,
    task: TaskKind | None = None,
    labels: Sequence[str] | None = None,
    preprocess: Callable[..., Any] | None = None,
    augment: Callable[..., Any] | None = None,
    loss: Callable[..., Any] | None = None,
    metric: Metric | None = None,
    arguments: Mapping[str, Any] | None = None,
    overrides: Overrides = (),
) -> RunResult:
    """Find the best variant of a trained model inside a budget, prove it on the test split, and put it into service.

    What is given becomes a project in ``.winnow/projects``: the model's source and weights, the data, a workload and a
    spec. ``winnow run PROJECT/spec.yaml`` does the same again, and the folder is yours to change. The model itself is
    left as it is.

    Args:
        model: a trained module; called with the (preprocessed) inputs by name, it answers one tensor [N, ...]. It is
            built again from its class, which lies in a module, a notebook or a script, with ``arguments``, or with its
            attributes that have the names of the class's parameters; where that fails, from its traced graph.
        train, validation, test: each ``(inputs, targets)`` as arrays, tensors or pandas objects [rows, ...]; a mapping
            of columns with the key ``target``; or a torch Dataset of ``(input, target)``. The test split is used once.
        budget: any of ``max_accuracy_drop`` (in the metric's unit) or ``max_relative_drop`` (a share of it),
            ``p95_ms``, ``max_bytes``, ``min_speedup`` and ``min_shrink`` (times, against the baseline), ``max_luts``,
            ``threads``,
            ``batch``.
        objective: what counts inside the budget: ``both`` latency and size, one of the two, ``throughput``, or
            ``front``: all that no other beats.
        minutes: for training and measuring candidates.
        name: of the model in the registry and at the endpoint; by default its class in lower case.
        calibration: as ``train``; by default a tenth of it, at most 512 rows, is held out.
        task: what is learned, where targets and answers do not say it: ``binary`` (one logit), ``classes``, ``labels``
            (several per sample), ``regression``, ``places`` (a class for each pixel or step), or ``other`` (only
            ``loss`` and ``metric`` know); by default inferred.
        labels: names of the classes, in the order of the model's outputs.
        preprocess: raw input [N, ...] to what the model takes: a function of the tensor, or of the tensors by name
            where there are several. It becomes part of the exported file, so that clients send raw values.
        augment: ``(input, generator)``, random changes of a training batch, before ``preprocess``.
        loss: ``(outputs, targets)``, a scalar; by default what fits the task, such as cross-entropy for classes.
        metric: by default what fits the task, such as accuracy for classes.
        arguments: of the model's class.
        overrides: changes of the spec by key, as in :func:`winnow.run`, such as ``{"distill.epochs": 20}``.

    Returns:
        The run, also where nothing inside the budget could be proven: look at ``.status``.

    Raises:
        WorkloadError: the model or a function cannot be made reproducible; names what is in the way and what to do.
        DataReadError: the data cannot be read as arrays of numbers.
        SpecError, StackDown, WinnowError, KeyboardInterrupt: as :func:`winnow.run`.
    """
    reach_servers()  # before anything takes time
    from flows.calls.project import write_project

    spec = write_project(
        model,
        {"train": train, "calibration": calibration, "validation": validation, "test": test},
        name=name,
        task=task,
        spec={"budget": dict(budget), "objective": objective, "search": {"minutes": minutes}},
        labels=labels,
        functions={"preprocess": preprocess, "augment": augment, "loss": loss},
        metric=metric,
        arguments=arguments,
    )
    return run_spec(spec, overrides)
