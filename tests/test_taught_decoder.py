"""Decoders that learn whole distributions of a teacher: students, what was pruned, and what a step of that takes."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_low_bits import SCALE, continued, processes, split, teacher, trained_decoder
from torch import nn
from torch.nn import functional

from model_registry.store import Store
from model_registry.variant import Variant
from tasks.distill import DistillSpec, distill
from tasks.prune import PruneSpec, prune
from tasks.running.stage import WorkloadRef
from tasks.torch_models.fit import fit
from tasks.torch_models.taught_decoder import TaughtDecoder, WholeDistributions, whole_distributions
from tasks.torch_models.torch_variant import build, load
from tasks.torch_models.training import Training
from tasks.torch_models.training_data import TrainingData
from tasks.workloads.causal_decoder import CausalDecoder
from tasks.workloads.causal_lm import CausalLM
from tasks.workloads.workload import Workload

__all__ = ["processes", "teacher"]  # fixtures


class OwnLoss(CausalLM):
    """Only the second half of a text counts."""

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return -outputs[:, outputs.shape[1] // 2 :].mean()


def divergence(student: CausalDecoder, teacher: CausalDecoder, tokens: torch.Tensor) -> float:
    """Nats a token by which the student's distributions are apart from the teacher's."""
    with torch.no_grad():
        ours, theirs = (functional.log_softmax(each.logits(each.states(tokens)), -1) for each in (student, teacher))
    return float(functional.kl_div(ours, theirs, log_target=True, reduction="none").sum(-1).mean())


def test_a_student_is_trained_in_place_and_its_distributions_come_near(teacher: CausalDecoder) -> None:
    workload = Workload(CausalLM("nothing is read"), WorkloadRef(path="winnow:CausalLM"))
    rows, validation = continued(teacher, 256, seed=5), continued(teacher, 32, seed=6)
    tokens = torch.from_numpy(validation)
    student = CausalDecoder(teacher.shape, [0])
    student.load_state_dict(teacher.state_dict(), strict=False)
    names, before = list(student.state_dict()), divergence(student, teacher, tokens)
    goal = WholeDistributions(teacher, alpha=1.0)
    around = goal.around(student)
    assert isinstance(around, TaughtDecoder) and around.decoder is student
    apart = copy.deepcopy(around)
    assert isinstance(apart, TaughtDecoder)
    assert apart.decoder is not student and apart._teacher.model is teacher
    data = TrainingData(workload, split(rows), split(validation))
    fitted = fit(student, data, Training(epochs=3, batch_size=16, learning_rate=0.01), objective=goal, device="cpu")
    assert list(student.state_dict()) == names and not student.training
    assert divergence(student, teacher, tokens) < 0.7 * before
    with torch.no_grad():
        assert fitted.val_metric == pytest.approx(-float(student(tokens).mean()), rel=1e-5)


@pytest.mark.usefixtures("processes")
def test_distilling_and_pruning_a_decoder_learn_whole_distributions(store: Store, tmp_path: Path) -> None:
    job, stored, data, whole = trained_decoder(store, tmp_path)
    workload = data.workload

    spec = DistillSpec(
        scale={"layers": 3, **SCALE},
        inherit=True,
        epochs=1,
        batch_size=32,
        learning_rate=3e-3,
        alpha=0.6,
        control=False,
    )
    found = distill.task.fn(job, spec, data=stored, teacher=whole)
    kept = found.values["scale"]["layers"]
    assert len(kept) == 3 and kept == sorted(kept) and found.values["inherited"] == 1.0
    taught = load(store, whole, workload=workload)
    assert isinstance(taught, CausalDecoder)
    again = build(workload, "student", {"layers": kept, **SCALE})
    again.load_state_dict(taught.state_dict(), strict=False)
    fit(again, data, Training.of(spec.model_dump()), objective=WholeDistributions(taught, 0.6), device="cpu")
    made = load(store, found.variant, workload=workload)
    for name, weight in again.state_dict().items():
        assert torch.equal(made.state_dict()[name], weight), name

    costed = distill.task.fn(job, spec.model_copy(update={"epochs": 0}), data=stored, teacher=whole)
    assert costed.values["row_seconds"] > 0 and costed.values["scale"] == found.values["scale"]

    narrowing = PruneSpec(ratio=0.3, epochs=1, steps=1, batch_size=32, learning_rate=3e-3)
    pruned = prune.task.fn(job, narrowing, data=stored, parent=whole, teacher=whole)
    smaller = load(store, pruned.variant, workload=workload)
    assert isinstance(smaller, CausalDecoder)
    assert pruned.values["validation"]["tuned"] < pruned.values["validation"]["pruned"] + 0.05
    untrained = prune.task.fn(job, narrowing.model_copy(update={"epochs": 0}), data=stored, parent=whole, teacher=whole)
    again = load(store, untrained.variant, workload=workload)
    goal = WholeDistributions(taught, narrowing.alpha)
    fit(again, data, Training.of(narrowing.model_dump()), objective=goal, device="cpu")
    for name, weight in again.state_dict().items():
        assert torch.equal(smaller.state_dict()[name], weight), name

    def goal_of(*teachers: Variant, student: nn.Module = again, of: Workload = workload, alpha: float = 0.5) -> object:
        return whole_distributions(store, teachers, student, workload=of, device="cpu", alpha=alpha)

    assert isinstance(goal_of(whole), WholeDistributions)
    apart = CausalDecoder(replace(taught.shape, vocabulary=99))
    own = Workload(OwnLoss("nothing is read"), job.workload)
    others = (goal_of(whole, whole), goal_of(whole, alpha=0), goal_of(whole, student=apart), goal_of(whole, of=own))
    assert [*others, goal_of(whole, student=nn.Linear(2, 2))] == [None] * 5


def test_whole_distributions_keep_their_digits_in_low_precision(teacher: CausalDecoder) -> None:
    student = TaughtDecoder(copy.deepcopy(teacher).requires_grad_(True), teacher, alpha=0.5).train()
    tokens = torch.from_numpy(continued(teacher, 4, seed=7))
    exact = student(tokens).mean()
    with torch.autocast("cpu", torch.bfloat16):
        rough = student(tokens).mean()
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=0.02)
    torch.autograd.backward(rough)
    assert all(weight.grad is not None for weight in student.decoder.parameters())
