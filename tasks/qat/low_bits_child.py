"""The qat stage of a decoder in its process."""

from __future__ import annotations

from dataclasses import replace

import onnx

from model_registry.decoder_form import TOKENS, DecoderForm
from model_registry.form_name import form_name, name_parts
from model_registry.text_input import DECODER
from model_registry.variant import Variant
from tasks.onnx_models.onnx_cost import onnx_cost
from tasks.qat.low_bits import put_back, take_rounded
from tasks.qat.low_bits_parity import check_low_bits, small_scores
from tasks.qat.raw_workload import raw_inputs
from tasks.running.child import Child, Result
from tasks.torch_models.fit import fit
from tasks.torch_models.fit_checkpoint import StoreCheckpoints
from tasks.torch_models.fit_rows import torch_device
from tasks.torch_models.fit_state import history_jsonl
from tasks.torch_models.taught_decoder import WholeDistributions
from tasks.torch_models.torch_variant import load
from tasks.torch_models.training import Training
from tasks.torch_models.training_data import TrainingData
from tasks.workloads.causal_decoder import CausalDecoder
from tasks.workloads.workload import Workload, load_workload

_ROWS = 4
"""On which file and model are compared."""


def main(child: Child) -> Result:
    """Train the decoder's weights of 4 bits, write them again, check that they answer as trained, and publish."""
    parent = child.inputs["parent"]
    workload = load_workload(child.job.workload, child.data.known)
    data = TrainingData.read(child.store, child.data, workload, child.workdir / "splits")
    before = child.store.fetch_bytes(parent.file("model.onnx"))
    file = onnx.load_from_string(before)
    form = DecoderForm.from_json(child.store.fetch_bytes(parent.file(DECODER)))
    student, teacher = (_decoder(child, role, workload) for role in ("float_parent", "teacher"))
    trainable = take_rounded(student, file)
    tokens = raw_inputs(workload, data.validation)[TOKENS]
    check_low_bits(student, file, form, tokens[:_ROWS])  # before hours of training

    fitted = fit(
        student,
        data,
        # A scale of bf16 is not that of the file.
        replace(Training.of(child.spec, child.job), amp="off", pipelined=False),
        objective=WholeDistributions(teacher.to(torch_device(child.job.device)), child.spec["alpha"]),
        seed=child.job.seed,
        device=child.job.device,
        checkpoints=StoreCheckpoints(child.store, f"{child.checkpoint_prefix}qat"),
        progress=lambda fraction, text: child.progress(0.95 * fraction, text),
    )
    made = put_back(student.cpu(), file)
    apart = check_low_bits(student, made, form, tokens[:_ROWS])
    after = made.SerializeToString(deterministic=True)

    variant = _publish(child, after)
    costs = {"parameters": onnx_cost(made).parameters, "macs": None, "bytes": len(after)}
    values = {
        "variants": {variant.digest: {"name": variant.name, **costs}},
        "validation": {
            name: float(workload.scores(small_scores(each, form, tokens), tokens).mean())
            for name, each in (("parent", before), ("qat", after))
        },
        "parity": {"rows": len(tokens[:_ROWS]), "largest": apart},
        "trainable": trainable,
        **fitted.summary(),
    }
    history = child.store.publish_bytes(history_jsonl(fitted.history), f"{variant.name}.history.jsonl")
    return Result(variants=(variant,), values=values, files=(history,))


def _decoder(child: Child, role: str, workload: Workload) -> CausalDecoder:
    model = load(child.store, child.inputs[role], workload=workload)
    assert isinstance(model, CausalDecoder), "the file says that it is a decoder's"
    return model.requires_grad_(False)


def _publish(child: Child, file: bytes) -> Variant:
    parent = child.inputs["parent"]
    label, form = name_parts(parent.name)
    return Variant(
        name=form_name(label, f"{form}-qat"),
        stage="qat",
        format="onnx",
        files=(
            child.store.publish_bytes(file, "model.onnx"),
            *(each for each in parent.files if each.path.startswith("assets/")),
        ),
        inputs=parent.inputs,
        outputs=parent.outputs,
        runtime=parent.runtime,
    )
