"""A model in the user's own process, answering through the engine that serves it."""

from __future__ import annotations

import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from model_registry.manifest import describe_files
from model_registry.store import Store
from model_registry.variant import TensorSpec, Variant
from serving.engine import MODEL, Engine
from serving.exceptions import LoadRefused
from serving.onnx_safety import check_onnx
from serving.quiet_runtime import onnxruntime
from serving.sample_values import SampleReader, as_text, only_row
from serving.tensors import ONNX, Array
from serving.variant_cache import VariantCache, download_variant


class LoadedModel:
    """An ONNX model, loaded and warmed up. Made by :func:`winnow.load`; may be called from several threads.

    Attributes:
        name: as it was asked for.
        variant: what it is: files, inputs, outputs, how it is run.
    """

    def __init__(self, engine: Engine, name: str) -> None:
        engine.warm_up()
        self._engine, self.name, self.variant = engine, name, engine.variant
        self._reader = SampleReader(name, engine.served)

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
        folder, variant = VariantCache(cache, partial(download_variant, store)).fetch(digest)
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
        return self._engine.served

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
        return only_row(self._run(self._reader.one(sample)))

    def predict_batch(self, samples: Any) -> dict[str, Array]:
        """The outputs for N samples, by name, each [N, ...]; labels are an array of text.

        Args:
            samples: an array [N, ...], tensor, list of rows or data frame of numbers, or a mapping by input name.

        Raises:
            InvalidRequest: they do not fit the model's inputs; names the input and its shape.
        """
        return self._run(self._reader.batch(samples))

    def __repr__(self) -> str:
        inputs = ", ".join(f"{s.name} {s.datatype}{list(s.shape)}" for s in self.inputs)
        return f"LoadedModel({self.name!r}, {inputs} -> {', '.join(s.name for s in self.outputs)})"

    def _run(self, rows: dict[str, Array]) -> dict[str, Array]:
        return {name: as_text(values) for name, values in self._engine.run(rows).items()}


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
