"""The value that flows through the pipeline: a frozen, JSON-small description of one model variant."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    model_serializer,
    model_validator,
)

from model_registry.datatypes import Datatype
from model_registry.manifest import FileEntry, canonical_json

# Names travel into URLs, S3 keys and MLflow; anything wider has been a path-traversal hole elsewhere.
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


_STORED: dict[str, Any] = {"stored": True}
"""Context of validation for what another version of Winnow may have written."""


class NewerRecord(ValueError):
    """A stored document has a newer form than this version of Winnow knows. Update this installation."""


class Frozen(BaseModel):
    """Base of every value: immutable, unknown keys refused, but for those in stored documents."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _pass_over_later_fields(cls, data: Any, info: ValidationInfo) -> Any:
        """A newer version of Winnow may have stored more: an older endpoint has to read it all the same."""
        if info.context is not _STORED or not isinstance(data, dict):
            return data
        known = {*cls.model_fields, *(field.alias for field in cls.model_fields.values())}
        return {key: value for key, value in data.items() if key in known}

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_no_switches(cls, data: Any) -> Any:
        """``epochs: true`` would be one epoch."""
        if isinstance(data, dict):
            for name in _number_fields(cls):
                if isinstance(data.get(name), bool):
                    raise ValueError(f"{name} is a number, got {str(data[name]).lower()}")
        return data


@cache
def _number_fields(model: type[BaseModel]) -> tuple[str, ...]:
    """Fields, by name and alias, that hold a number and cannot hold true or false."""
    found = []
    for name, field in model.model_fields.items():
        types = set(_types_in(field.annotation))
        if types & {int, float} and bool not in types:
            found += [name] + ([field.alias] if field.alias else [])
    return tuple(found)


def _types_in(annotation: Any) -> Iterator[Any]:
    """The alternatives of an annotation; what is inside lists and the like is looked at by nobody."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        for part in get_args(annotation):
            yield from _types_in(part)
    elif origin is Annotated:
        yield from _types_in(get_args(annotation)[0])
    elif origin is Literal:
        yield from map(type, get_args(annotation))
    else:
        yield annotation


class Record(Frozen):
    """Base of every stored document: carries ``schema: 1`` so that later versions can still read it."""

    schema_version: Literal[1] = Field(default=1, alias="schema")

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """What :meth:`to_json` wrote, in this version of Winnow or another one; fields that came later are left out.

        Raises:
            NewerRecord: its schema is newer.
            ValidationError: it is damaged.
        """
        try:
            return cls.model_validate_json(data, context=_STORED)
        except ValidationError as error:
            newer = [e["input"] for e in error.errors() if e["loc"] in (("schema",), ("schema_version",))]
            if newer and isinstance(newer[0], int) and newer[0] > 1:
                raise NewerRecord(
                    f"a stored {cls.__name__} has schema {newer[0]}, and this version of Winnow reads schema 1: it was "
                    "written by a newer one; update this installation"
                ) from error
            raise

    def to_json(self) -> bytes:
        """Canonical UTF-8 JSON (sorted keys, no spaces), the form that is stored and hashed."""
        return canonical_json(self.model_dump(mode="json", by_alias=True))


class TensorSpec(Frozen):
    """One input or output tensor; ``-1`` marks a dimension free at run time (the batch is first)."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    missing: bool = False
    """As served: values may be missing, NaN in an array and ``null`` in JSON. Never set in a variant's own specs."""

    @model_serializer(mode="wrap")
    def _written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Later fields are written only where they are set: what was stored before them keeps its digest."""
        written: dict[str, Any] = handler(self)
        return {name: value for name, value in written.items() if name != "missing" or value}


class RuntimeSpec(Frozen):
    """How the variant is run. Part of the digest: what is measured is what is served."""

    provider: str = "CPUExecutionProvider"
    intra_op_threads: int = Field(default=1, ge=1)
    inter_op_threads: int = Field(default=1, ge=1)
    spinning: bool = False
    graph_optimization: Literal["disabled", "basic", "extended", "all"] = "all"
    cpu_class: str | None = None
    """CPU class an int8 variant was quantized and validated for; None where the result does not depend on it."""
    arena: bool = True
    """Whether ONNX Runtime keeps freed memory for the next request; without it memory shrinks and requests slow."""
    disabled_optimizers: tuple[Annotated[str, Field(pattern=r"^[A-Z][A-Za-z0-9]{0,63}$")], ...] = ()
    """Graph optimizers of ONNX Runtime that are left out, by their names there, such as ``NchwcTransformer``."""
    gpu_class: str | None = None
    """GPU class a variant for a GPU was proven on (model_registry/gpu_class.py); None where it runs on the CPU."""
    precision: Literal["fp32", "tf32", "fp16", "bf16", "int8"] = "fp32"
    """What a GPU may compute in besides the types of the file; see :mod:`model_registry.provider_options`."""
    cuda_graph: bool = False
    """Whether a GPU replays the launches of the first run: for inputs and outputs of fixed shape."""

    @model_serializer(mode="wrap")
    def _written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Later fields are written only where they are set: what was stored before them keeps its digest."""
        written: dict[str, Any] = handler(self)
        later = {name: type(self).model_fields[name].default for name in _LATER_FIELDS}
        unset = {name for name, default in later.items() if getattr(self, name) == default}
        return {name: value for name, value in written.items() if name not in unset}


_LATER_FIELDS = ("arena", "disabled_optimizers", "gpu_class", "precision", "cuda_graph")
"""Fields of RuntimeSpec that came after the first release."""


class Variant(Record):
    """One model, in one form. Equal digests mean equal behaviour; ``name`` and ``stage`` are labels."""

    name: str
    stage: str
    format: Literal["torch", "onnx"]
    files: tuple[FileEntry, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    runtime: RuntimeSpec = RuntimeSpec()
    digest: str = ""

    @model_validator(mode="after")
    def _sealed(self) -> Self:
        """Compute the digest of a new variant; refuse one that was stored under another digest."""
        digest = self._compute_digest()
        if self.digest and self.digest != digest:
            raise ValueError(f"variant {self.name!r} says digest {self.digest}, its content hashes to {digest}")
        object.__setattr__(self, "digest", digest)  # frozen model: the one write, at construction
        return self

    def _compute_digest(self) -> str:
        body = {
            "format": self.format,
            "files": sorted([f.path, f.sha256, f.size] for f in self.files),
            "inputs": [t.model_dump(mode="json") for t in self.inputs],
            "outputs": [t.model_dump(mode="json") for t in self.outputs],
            "runtime": self.runtime.model_dump(mode="json"),
        }
        return hashlib.sha256(canonical_json(body)).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all files together: what it takes where it is kept."""
        return sum(f.size for f in self.files)

    @property
    def model_bytes(self) -> int:
        """Bytes of an ONNX variant's model file: what a report, a gate or a budget calls its size."""
        return self.file("model.onnx").size

    def file(self, path: str) -> FileEntry:
        """The file of that name inside the variant; KeyError if it has none."""
        for entry in self.files:
            if entry.path == path:
                return entry
        raise KeyError(f"variant {self.name!r} has no file {path!r}; it has {[f.path for f in self.files]}")
