"""A student that begins with the teacher's layers, as far as it has them.

After Sanh et al. 2019, "DistilBERT" (arXiv:1910.01108), section 3, where the student takes one layer out of two.
Residual
blocks can be left out with little harm, for what they add to is passed on (Veit et al. 2016, arXiv:1605.06431).
"""

from __future__ import annotations

import torch
from torch import nn


def inherit(student: nn.Module, teacher: nn.Module) -> float:
    """Copy the teacher's parameters and buffers into those of the student with the same name, shape and type.

    Returns:
        The share of the student's parameters that are the teacher's now, 0 to 1.
    """
    theirs, ours = teacher.state_dict(), student.state_dict()
    fitting = {
        name
        for name, tensor in ours.items()
        if name in theirs and (theirs[name].shape, theirs[name].dtype) == (tensor.shape, tensor.dtype)
    }
    with torch.no_grad():
        for name in fitting:
            ours[name].copy_(theirs[name])
    parameters = dict(student.named_parameters())
    whole = sum(parameter.numel() for parameter in parameters.values())
    return sum(parameter.numel() for name, parameter in parameters.items() if name in fitting) / max(1, whole)
