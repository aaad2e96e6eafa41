"""A model in the user's own process, answering through the engine that serves it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from model_registry.manifest import describe_files
from model_registry.store import Store
from model_registry.variant import TensorSpec, Variant
from serving.engine import MODEL, Engine
from serving.exceptions import InvalidRequest, LoadRefused
from serving.onnx_safety import check_onnx
from serving.tensors import NUMPY, ONNX, Array, bytes_array
from serving.variant_cache import VariantCache


class LoadedModel:
    """An ONNX model, loaded and warmed up. Made by :func:`winnow.load`; may be called from several threads.

    Attributes:
        name: as it was asked for.
        variant: what it is: files, inputs, outputs, how it is run.
    """

    def __init__(self, engine: Engine, name: str) -> None:
        engine.warm_up()
        self._engine, self.name, self.variant = engine, name, engine.variant

    @classmethod
    def from_store(
        cls, cache: Path, store: Store, digest: str, *, name: str, threads: int | None = None
    ) -> LoadedModel:
        """The variant of that digest, its files verified; kept in ``cache`` for the next time.

        Raises:
            StoreError: it is not in the store, or its files are damaged there.
            LoadRefused: it is no ONNX variant.
            EngineLoadError: ONNX Runtime refuses it.
        """
        if store.load_variant(digest).format != "onnx":
            raise LoadRefused(f"{name}: the variant {digest[:12]} is no ONNX file; export it first")
        folder, variant = VariantCache(cache, lambda: store).fetch(digest)
        return cls(Engine(folder, variant, threads=threads), name)

    @classmethod
    def from_file(cls, path: Path, *, threads: int | None = None) -> LoadedModel:
        """Any ONNX file.

        Raises:
            FileNotFoundError: there is no such file.
            UnsafeModel: it refers to data outside itself.
            EngineLoadError, LoadRefused: ONNX Runtime refuses it, or it has inputs that cannot be served.
        """
        data = path.read_bytes()
        check_onnx(data)
        with tempfile.TemporaryDirectory(prefix="winnow-load-") as folder:
            shutil.copyfile(path, Path(folder) / MODEL)
            variant = Variant(
                name=path.stem,
                stage="file",
                format="onnx",
                files=(describe_files(Path(folder) / MODEL, MODEL),),
                **_signature(data, path),
            )
            return cls(Engine(Path(folder), variant, threads=threads), str(path))

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Name, datatype and shape of each input; -1 is free, the batch comes first."""
        return self._engine.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The same of each output; a classifier with labels has ``label`` and ``probability`` besides."""
        return self._engine.outputs

    def predict(self, sample: Any) -> dict[str, Any]:
        """The outputs for one sample, by name.

        Args:
            sample: one row without the batch dimension: an array, tensor or list, or a mapping of them by input name. A
                missing value is NaN or None, where the model was trained with some.

        Returns:
            A scalar or an array per output; labels are text.

        Raises:
            InvalidRequest: it does not fit the model's inputs; names the input and its shape.
        """
        rows = {name: np.expand_dims(values, 0) for name, values in self._arrays(sample).items()}
        answer = self._run(rows)
        return {name: values[0].item() if values.ndim == 1 else values[0] for name, values in answer.items()}

    def predict_batch(self, samples: Any) -> dict[str, Array]:
        """The outputs for N samples, by name, each [N, ...]; labels are an array of text.

        Args:
            samples: an array [N, ...], tensor, list of rows or data frame of numbers, or a mapping by input name.

        Raises:
            InvalidRequest: they do not fit the model's inputs; names the input and its shape.
        """
        return self._run(self._arrays(samples))

    def __repr__(self) -> str:
        inputs = ", ".join(f"{s.name} {s.datatype}{list(s.shape)}" for s in self.inputs)
        return f"LoadedModel({self.name!r}, {inputs} -> {', '.join(s.name for s in self.outputs)})"

    def _arrays(self, given: Any) -> dict[str, Array]:
        names = [spec.name for spec in self.inputs]
        if not isinstance(given, Mapping):
            if len(names) != 1:
                raise InvalidRequest(f"{self.name} has the inputs {names}; give a mapping with these keys")
            given = {names[0]: given}
        if set(given) != set(names):
            raise InvalidRequest(f"{self.name} has the inputs {names}, got {sorted(map(str, given))}")
        return {spec.name: _array(given[spec.name], spec) for spec in self.inputs}

    def _run(self, rows: dict[str, Array]) -> dict[str, Array]:
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
        return {name: _text(values) for name, values in self._engine.run(rows).items()}


def _array(values: Any, spec: TensorSpec) -> Array:
    """The values in the input's own datatype; nothing is rounded to fit."""
    if hasattr(values, "detach"):  # a torch tensor, which numpy does not take while it has a gradient
        values = values.detach().cpu()
    given = np.asarray(values)
    if spec.datatype == "BYTES":
        flat = [v if isinstance(v, bytes) else str(v).encode() for v in given.ravel().tolist()]
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


def _text(values: Array) -> Array:
    if values.dtype != NUMPY["BYTES"]:
        return values
    return np.array([v.decode(errors="replace") for v in values.ravel().tolist()], dtype=np.str_).reshape(values.shape)


def _signature(data: bytes, path: Path) -> dict[str, tuple[TensorSpec, ...]]:
    """Inputs and outputs as ONNX Runtime sees them."""
    try:
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises a family of classes without a common base
        raise LoadRefused(f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {error}") from error
    found = {}
    for kind, values in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
        unknown = [f"{v.name} {v.type}" for v in values if v.type not in ONNX]
        if unknown:
            raise LoadRefused(f"{path}: {kind} {unknown} are of types that cannot be served")
        found[kind] = tuple(
            TensorSpec(
                name=v.name, datatype=ONNX[v.type], shape=tuple(d if isinstance(d, int) else -1 for d in v.shape)
            )
            for v in values
        )
    return found
