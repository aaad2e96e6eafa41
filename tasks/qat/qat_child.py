"""The qat stage in its process."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import onnx
import torch

from model_registry.form_name import form_name, name_parts
from model_registry.variant import Variant
from tasks.onnx_models.byte_input import fold_byte_inputs, spell_out_byte_inputs
from tasks.onnx_models.onnx_cost import onnx_cost
from tasks.onnx_models.onnx_graph import strip
from tasks.qat.float_weights import float_weights
from tasks.qat.int8_parity import Floats, check_int8_parity, run_onnx
from tasks.qat.qdq_graph import Array
from tasks.qat.raw_workload import RawWorkload, ask_teacher, raw_inputs
from tasks.qat.torch_graph import TorchGraph
from tasks.qat.write_back import write_back
from tasks.running.child import Child, Result
from tasks.running.splits import Columns
from tasks.torch_models.fit import fit
from tasks.torch_models.fit_checkpoint import StoreCheckpoints
from tasks.torch_models.fit_rows import predict
from tasks.torch_models.fit_state import history_jsonl
from tasks.torch_models.objective import Objective, distillation
from tasks.torch_models.training import Training
from tasks.torch_models.training_data import TrainingData
from tasks.workloads.workload import Workload, load_workload


def main(child: Child) -> Result:
    """Train the int8 file, write it again, check that it answers as trained, and publish it with its curves."""
    parent = child.inputs["parent"]
    users = load_workload(child.job.workload, child.data.known)
    workload = RawWorkload(users)
    data = TrainingData.read(child.store, child.data, workload, child.workdir / "splits")
    before = child.store.fetch_bytes(parent.file("model.onnx"))
    model = spell_out_byte_inputs(onnx.load_from_string(before))
    floats = _floats(child, model)
    module = TorchGraph(model, floats)

    fitted = fit(
        module,
        data,
        # bf16 has too few bits for the 256 steps of a grid; a graph has no blocks.
        replace(Training.of(child.spec, child.job), amp="off", pipelined=False),
        objective=_objective(child, users, data),
        seed=child.job.seed,
        device=child.job.device,
        checkpoints=StoreCheckpoints(child.store, f"{child.checkpoint_prefix}qat"),
        progress=lambda fraction, text: child.progress(0.95 * fraction, text),
    )
    after = _written(module)
    inputs = raw_inputs(workload, data.validation)
    trained = predict(module, workload=workload, columns=data.validation, device="cpu")
    answers = run_onnx(after, inputs)
    parity = check_int8_parity(trained, answers, scale=module.output_scale())
    cost = onnx_cost(onnx.load_from_string(after), {name: (1, *v.shape[1:]) for name, v in inputs.items()})

    variant = _publish(child, after)
    costs = {"parameters": cost.parameters, "macs": cost.macs, "bytes": len(after)}
    values: dict[str, Any] = {
        "variants": {variant.digest: {"name": variant.name, **costs}},
        "validation": {
            "parent": _metric(workload, run_onnx(before, inputs), data.validation),
            "qat": _metric(workload, answers, data.validation),
        },
        "parity": asdict(parity),
        "layers": len(module.graph.weights),
        "float_weights": len(floats),
        **fitted.summary(),
    }
    history = child.store.publish_bytes(history_jsonl(fitted.history), f"{variant.name}.history.jsonl")
    return Result(variants=(variant,), values=values, files=(history,))


def _objective(child: Child, workload: Workload, data: TrainingData) -> Objective:
    """``workload``: the user's, with its preprocessing, as the teacher takes it."""
    answers = ask_teacher(
        child.store,
        child.inputs["teacher"],
        workload=workload,
        data=child.data,
        train=data.train,
        device=child.job.device,
    )
    return distillation(
        workload.loss,
        answers,
        task=child.data.task,
        temperature=child.spec["temperature"],
        alpha=child.spec["alpha"],
    )


def _written(module: TorchGraph) -> bytes:
    """The trained module as an ONNX file."""
    model = write_back(module)
    fold_byte_inputs(model)
    return strip(model, merge_equal=True)


def _publish(child: Child, file: bytes) -> Variant:
    parent = child.inputs["parent"]
    assets = (f for f in parent.files if f.path.startswith("assets/"))
    return Variant(
        name=form_name(name_parts(parent.name)[0], "qat"),
        stage="qat",
        format="onnx",
        files=(child.store.publish_bytes(file, "model.onnx"), *assets),
        inputs=parent.inputs,
        outputs=parent.outputs,
        runtime=parent.runtime,
    )


def _floats(child: Child, model: onnx.ModelProto) -> dict[str, Array]:
    if "float_parent" not in child.inputs:
        return {}
    file = child.store.fetch_bytes(child.inputs["float_parent"].file("model.onnx"))
    return float_weights(model, file, child.workdir)


def _metric(workload: Workload, answers: Floats, columns: Columns) -> float:
    """The workload's metric of answers to a split."""
    _, found = workload.batch({name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in columns.items()})
    targets = found.numpy()
    return float(workload.scores(answers, targets).mean())
