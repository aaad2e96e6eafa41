"""A session whose inputs and outputs stay in one place on the GPU: without that, nothing can be replayed.

A CUDA graph holds addresses: the first run records the launches, and each later one replays them on the same buffers.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from model_registry.variant import TensorSpec
from serving.quiet_runtime import onnxruntime
from serving.tensors import NUMPY, Array


class BoundSession:
    """Runs a session on buffers of its own; one caller at a time, others wait.

    Args:
        session: ONNX Runtime's.
        inputs, outputs: of fixed shape, see :func:`fixed_shapes`.
        device: where the buffers are, ``cuda`` or ``cpu``.
    """

    def __init__(
        self, session: Any, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, device: str = "cuda"
    ) -> None:
        self._session, self._specs, self._busy = session, tuple(inputs), threading.Lock()
        self._binding = session.io_binding()
        self._inputs = {spec.name: _buffer(spec, device) for spec in inputs}
        self._outputs = {spec.name: _buffer(spec, device) for spec in outputs}
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)

    def run(self, names: Sequence[str], feed: Mapping[str, Array]) -> list[Array]:
        """The outputs of these names for arrays of exactly the inputs' shapes and types.

        Raises:
            ValueError: an array has another shape or type, and its bytes would not be those of the buffer.
        """
        for spec in self._specs:
            array = feed[spec.name]
            if (array.shape, array.dtype) != (spec.shape, NUMPY[spec.datatype]):
                raise ValueError(
                    f"input {spec.name!r} is {array.dtype} {list(array.shape)}; this variant takes {spec.datatype} "
                    f"{list(spec.shape)} alone"
                )
        with self._busy:
            for name, value in self._inputs.items():
                value.update_inplace(np.ascontiguousarray(feed[name]))
            self._session.run_with_iobinding(self._binding)
            return [self._outputs[name].numpy().copy() for name in names]  # the next run writes over them


def fixed_shapes(specs: Sequence[TensorSpec]) -> bool:
    """Whether no dimension of these tensors is free, the batch included, and all hold numbers."""
    return all(-1 not in spec.shape and spec.datatype != "BYTES" for spec in specs)


def _buffer(spec: TensorSpec, device: str) -> Any:
    return onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(spec.shape), NUMPY[spec.datatype], device, 0)
