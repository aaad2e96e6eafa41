"""fit() on an accelerator that torch has never heard of: ``imagined``, whose values lie in the CPU's memory.

Every operation of torch is answered by the CPU's, so that a training ends in the same weights but for the order in
which transposed matrices are added up. Written as JSON: how far they are apart, the devices of the weights, and the
curves on the CPU and there. A process of its own, since a device type is registered once.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import torch
from taught_workloads import taught
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._pytree import tree_map

from tasks.torch_models.fit import fit
from tasks.torch_models.torch_variant import build
from tasks.torch_models.training import Training
from tasks.torch_models.training_data import TrainingData

NAME = "imagined"
_ATEN = torch.ops.aten
VIEWS = (
    *(_ATEN.t.default, _ATEN.transpose.int, _ATEN.permute.default),
    *(_ATEN.expand.default, _ATEN.select.int, _ATEN.slice.Tensor, _ATEN.squeeze.dim, _ATEN.unsqueeze.default),
)


class Backend(backend_registration._DummyBackendModule):
    """What torch asks a device's module."""

    def get_rng_state(self, device: Any) -> Tensor:
        return torch.zeros(1, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: Any) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


_held: dict[int, tuple[Any, Tensor]] = {}
"""By the address of a tensor's storage, which copies made by autograd share: that, and the values."""


def held_by(values: Tensor) -> Tensor:
    """A tensor of the device with these values, in the order that torch takes all its tensors to be in."""
    made: Tensor = torch._C._acc.create_empty_tensor(tuple(values.shape), values.dtype)
    storage = made.untyped_storage()
    _held[storage._cdata] = (storage, values.contiguous())
    return made


def answered(operation: Any, *arguments: Any, **options: Any) -> Any:
    """The operation on the CPU. What it wrote into or returned of its arguments stays the argument."""
    known: dict[int, Tensor] = {}

    def inside(value: Any) -> Any:
        if isinstance(value, Tensor) and value.device.type == NAME:
            values = _held[value.untyped_storage()._cdata][1]
            known[id(values)] = value
            return values
        return torch.device("cpu") if isinstance(value, torch.device) else value

    def outside(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return known[id(value)] if id(value) in known else held_by(value)

    given, named = tree_map(inside, arguments), tree_map(inside, options)
    if operation is _ATEN._copy_from.default:  # both ways between the device and the CPU
        given[1].copy_(given[0])
        return arguments[1]
    return tree_map(outside, operation(*given, **named))


def main() -> None:
    torch.set_num_threads(1)  # as fit() has it for small models on CPUs
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Backend())
    implementing: Any = torch.library.Library  # untyped
    library = implementing("_", "IMPL")
    library.fallback(answered, "PrivateUse1")
    views = implementing("aten", "IMPL")
    for operation in VIEWS:  # torch's own would make tensors of another place in memory, and there is none
        views.impl(operation, partial(answered, operation), "PrivateUse1")
    workload = taught("Blobs")
    splits = workload.splits()
    data = TrainingData(workload, splits["train"], splits["validation"])
    training = Training(epochs=3, batch_size=32, learning_rate=5e-3, amp="off")
    models, curves = {}, {}
    for device in ("cpu", NAME):
        models[device] = build(workload, "teacher", {}, seed=0)
        curves[device] = fit(models[device], data, training, seed=0, device=device).history
    found = models[NAME].state_dict()
    apart = [float((value - found[name].cpu()).abs().max()) for name, value in models["cpu"].state_dict().items()]
    devices = sorted({value.device.type for value in found.values()})
    print(json.dumps({"largest": max(apart), "devices": devices, "curves": list(curves.values())}))


if __name__ == "__main__":
    main()
