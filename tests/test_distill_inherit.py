"""A student that begins with the teacher's layers."""

from __future__ import annotations

import torch

from tasks.distill.inheritance import inherit
from tasks.workloads.resnet import ResNet20


def network(width: float = 1.0, depth: float = 1.0) -> ResNet20:
    return ResNet20(shape=(3, 8, 8), classes=4, width=width, depth=depth)


def test_a_shallower_network_has_all_its_layers_from_the_teacher() -> None:
    torch.manual_seed(0)
    teacher, student = network(), network(depth=0.34)
    teacher.norm.get_buffer("running_mean").add_(1.0)
    assert inherit(student, teacher) == 1.0
    theirs = teacher.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in student.state_dict().items())
    with torch.no_grad():  # its own tensors, not the teacher's
        student.head.weight.zero_()
    assert teacher.head.weight.abs().sum() > 0


def test_a_narrower_one_has_next_to_nothing_of_it() -> None:
    teacher, student = network(), network(width=0.5)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    share = inherit(student, teacher)
    assert 0 < share < 0.01  # the bias of the head
    changed = [n for n, t in student.state_dict().items() if not torch.equal(t, before[n])]
    assert changed == ["head.bias"]
