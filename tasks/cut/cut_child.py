"""The cut stage in its process."""

from __future__ import annotations

import torch

from tasks.cut.model_cutter import cut_model
from tasks.running.child import Child, Result
from tasks.torch_models.batchnorm import reestimate_batchnorm
from tasks.torch_models.fit_rows import Rows, torch_device
from tasks.torch_models.fit_seeding import reproducible
from tasks.torch_models.pace import training_pace
from tasks.torch_models.torch_cost import torch_cost
from tasks.torch_models.torch_variant import load, read_architecture, save
from tasks.torch_models.training_data import TrainingData
from tasks.workloads.workload import load_workload

_TRACED_ROWS = 2


def main(child: Child) -> Result:
    """Cut the parent, measure BatchNorm's statistics again, and publish it."""
    spec, parent = child.spec, child.inputs["parent"]
    workload = load_workload(child.job.workload, child.data.known)
    data = TrainingData.read(child.store, child.data, workload, child.workdir / "splits")
    where = torch_device(child.job.device)
    model = load(child.store, parent, workload=workload).to(where)
    rows = Rows(workload, data.train, where)
    sample = rows(torch.arange(_TRACED_ROWS), None).inputs

    before = torch_cost(model, sample)
    cuts = cut_model(model, sample, stride=spec["stride"], depth=spec["depth"])
    structure = read_architecture(child.store, parent).cut_further(cuts)
    after = torch_cost(model, sample)
    child.progress(0.5, "measuring BatchNorm's statistics again")
    batches = rows.random_batches(spec["batchnorm_batches"], batch_size=spec["batch_size"], seed=child.job.seed)
    with reproducible(where, True):
        batchnorm_layers = reestimate_batchnorm(model, (batch.inputs for batch in batches))

    variant = save(
        child.store,
        model,
        workload=workload,
        structure=structure,
        sample=data.validation,
        name=child.extra["name"],
        stage="cut",
    )
    values = {
        "variants": {variant.digest: {"name": variant.name, **after.as_json()}},
        "before": before.as_json(),
        "layer": next(iter(cuts.layers), None),
        "blocks": list(cuts.removed),
        "batchnorm_layers": batchnorm_layers,
        **training_pace(model.to(where), rows, batch_size=spec["batch_size"]),
    }
    return Result(variants=(variant,), values=values)
