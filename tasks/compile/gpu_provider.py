"""Which of ONNX Runtime's providers a target is, and whether this machine has what it needs."""

from __future__ import annotations

import onnxruntime

from model_registry.gpu_class import NoGpu, gpu_class
from model_registry.provider_options import CUDA, TENSORRT
from model_registry.target_form import Target
from tasks.running.errors import SpecError

PROVIDERS: dict[Target, str] = {"cuda": CUDA, "tensorrt": TENSORRT}


def require_gpu(target: Target) -> str:
    """The class of this machine's GPU, see :mod:`model_registry.gpu_class`.

    Raises:
        SpecError: there is no GPU, its driver does not answer, or this onnxruntime lacks the provider; says which.
    """
    try:
        found = gpu_class()
    except NoGpu as error:
        raise SpecError(
            f"targets: {target} needs an NVIDIA GPU: {error}; run this on a machine that has one, or remove it from "
            "targets"
        ) from error
    offered = onnxruntime.get_available_providers()
    if PROVIDERS[target] not in offered:
        raise SpecError(
            f"targets: {target} needs {PROVIDERS[target]}, and onnxruntime {onnxruntime.__version__} as it is "
            f"installed here offers {', '.join(offered)}: pip install onnxruntime-gpu=={onnxruntime.__version__} after "
            "all else, or remove it from targets"
        )
    return found
