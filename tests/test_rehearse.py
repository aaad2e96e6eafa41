"""An untrained model is asked before anything is trained: what it learns is settled, and misfits are refused."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from flows.rehearsal import worth_trying
from flows.spec import parse_spec
from model_registry.store import Store
from tasks.rehearse import STAGE, settled_data
from tasks.rehearse.rehearse_child import main
from tasks.running.child import Child
from tasks.running.errors import WorkloadError
from tasks.running.splits import Columns, DataRef
from tasks.running.stage import Outcome, WorkloadRef
from tasks.torch_models.torch_variant import load
from tasks.workloads.workload import Workload, load_workload

if TYPE_CHECKING:
    from taught_workloads import ROWS, job_for, put_data
else:  # tests/ is no package at run time
    from taught_workloads import ROWS, job_for, put_data


class Rings:
    """Inside or outside, by one logit; ``first``: the number of the lower class. Its last layer begins with zeros."""

    def __init__(self, first: int = 0) -> None:
        self.first = first

    def splits(self) -> dict[str, Columns]:
        random = np.random.default_rng(0)
        made: dict[str, Columns] = {}
        for name, rows in ROWS.items():
            x = random.normal(size=(rows, 2)).astype(np.float32)
            made[name] = {"input": x, "target": (np.hypot(*x.T) > 1).astype(np.int64) + self.first}
        return made

    def model(self, role: str) -> nn.Module:
        head = nn.Linear(8, 1)
        nn.init.zeros_(head.weight)
        return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), head)

    def labels(self) -> list[str]:
        return ["inside", "outside"]


def rehearsed(store: Store, tmp_path: Path, **arguments: Any) -> tuple[Workload, DataRef, Outcome]:
    ref = WorkloadRef(path="test_rehearse:Rings", arguments=arguments, folder=str(Path(__file__).parent))
    workload = load_workload(ref)
    data = put_data(store, workload)
    request = {
        "job": job_for(store, ref).model_dump(mode="json"),
        "spec": {"scale": {}},
        "data": data.model_dump(mode="json"),
        "inputs": {},
        "extra": {},
        "key": "k",
        "workdir": str(tmp_path),
    }
    found = main(Child(request, messages=-1))
    outcome = Outcome(
        stage=STAGE.name,
        name=STAGE.name,
        status="computed",
        seconds=1.0,
        key="k",
        version="v",
        variants=found.variants,
        values=found.values,
    )
    return workload, data, outcome


def test_the_task_and_what_follows_from_it_are_settled(store: Store, tmp_path: Path) -> None:
    workload, data, outcome = rehearsed(store, tmp_path)
    assert data.task == "classes"  # as far as the targets alone say
    settled = settled_data(data, outcome)
    assert (settled.task, settled.metric.name, settled.fingerprint) == ("binary", "accuracy", data.fingerprint)
    assert job_for(store, workload.ref).learning(settled.task).workload.task == "binary"
    weight = load(store, outcome.variant, workload=workload).get_parameter("2.weight")
    assert torch.count_nonzero(weight) == weight.numel()  # of zeros alone nothing could be tried


def test_classes_that_are_not_numbered_from_0_are_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"1 to 2, and the model answers \[N, 1\].*neither 0 and 1"):
        rehearsed(store, tmp_path, first=1)


def test_stages_are_tried_where_training_takes_long_and_the_teacher_is_not_there(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload, data, outcome = rehearsed(store, tmp_path)
    assert 0 < outcome.values["row_seconds"] < 0.1
    job = job_for(store, workload.ref)

    def worth(settled: Outcome, **sections: Any) -> bool:
        document = {"schema": 1, "model": "rings", "workload": "test_rehearse:Rings", **sections}
        return worth_trying(job, parse_spec(document, "here"), data, settled)

    slow = outcome.model_copy(update={"values": {**outcome.values, "row_seconds": 1.0}})
    quick = outcome.model_copy(update={"values": {**outcome.values, "row_seconds": 1e-6}})
    brought = outcome.model_copy(update={"values": {"task": outcome.values["task"]}})
    assert worth(slow) and not worth(quick)
    assert not worth(quick, distill={"epochs": 5}) and worth(quick, distill={"epochs": 10**6})
    assert worth(quick, prune={"epochs": 10**7})
    assert worth(quick, search={"minutes": 1})
    assert not worth(brought, teacher={"weights": "weights.safetensors"})  # nothing is trained
    assert worth(brought, teacher={"weights": "weights.safetensors"}, distill={})
    monkeypatch.setattr("flows.rehearsal.is_stored", lambda *_, **__: True)
    assert not worth(slow) and not worth(slow, search={"minutes": 1})
    assert worth(brought, teacher={"weights": "weights.safetensors"}, prune={})
