"""What a caller in Python gives for a model's inputs, and gets for its outputs: values to arrays and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from model_registry.variant import TensorSpec
from serving.exceptions import InvalidRequest
from serving.tensors import NUMPY, Array, bytes_array


@dataclass(frozen=True)
class SampleReader:
    """Makes arrays for a model of what somebody gives.

    Attributes:
        name: of the model, for the texts of errors.
        inputs: its inputs; the batch comes first.
    """

    name: str
    inputs: tuple[TensorSpec, ...]

    def one(self, sample: Any) -> dict[str, Array]:
        """A batch of one row by input name, from a row without the batch dimension.

        Raises:
            InvalidRequest: it does not fit the inputs; names the input and its shape.
        """
        return self._checked({name: np.expand_dims(values, 0) for name, values in self._arrays(sample).items()})

    def batch(self, samples: Any) -> dict[str, Array]:
        """Arrays [N, ...] by input name; raises as :meth:`one`."""
        return self._checked(self._arrays(samples))

    def _arrays(self, given: Any) -> dict[str, Array]:
        names = [spec.name for spec in self.inputs]
        if not isinstance(given, Mapping):
            if len(names) != 1:
                raise InvalidRequest(f"{self.name} has the inputs {names}; give a mapping with these keys")
            given = {names[0]: given}
        if set(given) != set(names):
            raise InvalidRequest(f"{self.name} has the inputs {names}, got {sorted(map(str, given))}")
        return {spec.name: _array(given[spec.name], spec) for spec in self.inputs}

    def _checked(self, rows: dict[str, Array]) -> dict[str, Array]:
        for spec in self.inputs:
            shape = rows[spec.name].shape
            fits = len(shape) == len(spec.shape) and all(
                want in (-1, have) for want, have in zip(spec.shape, shape, strict=True)
            )
            if not fits or not shape or not shape[0]:
                raise InvalidRequest(
                    f"input {spec.name!r} of {self.name} takes {spec.datatype}{list(spec.shape)} (-1 is free), "
                    f"got {list(shape)}"
                )
        lengths = {spec.name: len(rows[spec.name]) for spec in self.inputs}
        if len(set(lengths.values())) > 1:
            raise InvalidRequest(f"the inputs differ in their number of rows: {lengths}")
        return rows


def only_row(outputs: Mapping[str, Array]) -> dict[str, Any]:
    """The outputs of a batch of one: a scalar or an array each."""
    return {name: values[0].item() if values.ndim == 1 else values[0] for name, values in outputs.items()}


def as_text(values: Array) -> Array:
    """An output as its user reads it: BYTES become text."""
    if values.dtype != NUMPY["BYTES"]:
        return values
    return np.array([v.decode(errors="replace") for v in values.ravel().tolist()], dtype=np.str_).reshape(values.shape)


def _array(values: Any, spec: TensorSpec) -> Array:
    """The values in the input's own datatype; nothing is rounded to fit."""
    if hasattr(values, "detach"):  # a torch tensor, which numpy does not take while it has a gradient
        values = values.detach().cpu()
    try:
        given = np.asarray(values)
    except ValueError:  # numpy's own words for it speak of inhomogeneous parts
        raise InvalidRequest(f"the rows of input {spec.name!r} differ in their shape") from None
    if spec.datatype == "BYTES":
        elements = given.ravel().tolist()
        if None in elements:
            raise InvalidRequest(f"input {spec.name!r} takes text, got None; an empty text stands for a missing one")
        flat = [v if isinstance(v, bytes) else str(v).encode() for v in elements]
        return bytes_array(flat, given.shape)
    wanted = NUMPY[spec.datatype]
    if spec.missing and given.dtype == object:
        given = np.array([np.nan if v is None else v for v in given.ravel().tolist()]).reshape(given.shape)
    if given.dtype.kind not in "biuf":
        raise InvalidRequest(f"input {spec.name!r} takes numbers ({spec.datatype}), got {given.dtype}")
    cast = given.astype(wanted)
    if wanted.kind in "biu" and not np.array_equal(cast, given):
        raise InvalidRequest(
            f"input {spec.name!r} takes {spec.datatype}, and the values given ({given.dtype}, "
            f"{given.min():g} to {given.max():g}) do not fit into it"
        )
    return cast
