"""The ask stage in its process."""

from __future__ import annotations

from tasks.running.child import Child, Result
from tasks.running.splits import read_split
from tasks.torch_models.teacher_answers import teacher_outputs, too_large
from tasks.torch_models.views import View, wanted_views
from tasks.workloads.workload import load_workload


def main(child: Child) -> Result:
    """Ask each teacher about each split and view that a training will want."""
    workload = load_workload(child.job.workload, child.data.known)
    splits = {name: read_split(child.store, child.data, name) for name in ("validation", "train")}
    questions: list[tuple[str, View | None]] = [("validation", None)] if child.spec["validation"] else []
    views = wanted_views(workload, child.spec["views"], child.job.seed, splits["train"], child.data.task)
    if views is not None:
        questions += [("train", view) for view in views.all()]
    elif not workload.augments:
        questions.append(("train", None))

    asked = [
        (teacher, split, view)
        for teacher in child.inputs.values()
        for split, view in questions
        if not too_large(teacher, splits[split], views if split == "train" else None)
    ]
    for number, (teacher, split, view) in enumerate(asked):
        child.progress(number / len(asked), f"{split}{'' if view is None else f', view {view.number + 1}'}")
        teacher_outputs(
            child.store,
            teacher,
            workload=workload,
            data=child.data,
            split=split,
            columns=splits[split],
            device=child.job.device,
            view=view,
        )

    rows = sum(len(next(iter(splits[split].values()))) for split, _ in questions)
    return Result(values={"answers": rows})
