"""The engine: one verified ONNX variant under ONNX Runtime, numpy in and numpy out.

The endpoint's engine processes and the probe run this very class, so what is measured is what is served.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model_registry.answer_labels import ONE_OF_SEVERAL, ONE_PER_WORD, SEVERAL_AT_ONCE
from model_registry.cpu_class import require_cpu_class
from model_registry.decoder_form import LOGITS, MOST, SEEN, TOKENS, WANTED, DecoderForm, score_tokens
from model_registry.gpu_class import require_gpu_class
from model_registry.missing_values import MISSING_VALUES
from model_registry.provider_options import TENSORRT, engine_folder, provider_options, runs_on_gpu
from model_registry.text_input import DECODER
from model_registry.variant import RuntimeSpec, TensorSpec, Variant
from serving.bound_session import BoundSession, fixed_shapes
from serving.exceptions import EngineLoadError, EngineRunError
from serving.labelled import Labelling
from serving.onnx_safety import check_onnx
from serving.quiet_runtime import onnxruntime
from serving.tensors import NUMPY, ONNX, Array, bytes_array
from serving.text_reader import WORDS, load_text_reader
from serving.verified_file import read_verified
from serving.word_labels import WordLabelling

MODEL = "model.onnx"

_CACHE_TYPES = {"float32": "tensor(float)", "int8": "tensor(int8)"}
_LEVELS = {
    "disabled": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


class Engine:
    """One variant, loaded and ready to run. ``run`` may be called from several threads at once.

    Args:
        folder: holds the variant's files under their manifest names.
        variant: an ONNX variant; its RuntimeSpec decides provider, threads, memory and graph optimizers.
        threads: intra-op threads instead of the variant's own, for measurements.

    Attributes:
        inputs, outputs: tensor specs of the graph; with labels, those of :class:`serving.labelled.Labelling` follow its
            own outputs.
        graph_outputs: names of the graph's own outputs.
        served: what clients send: the inputs, or ``text`` in their place where a tokenizer travels with the variant.
        session: ONNX Runtime's.
        decoder: how it continues text, None where it does not. It is run like any model, from tokens to
            log-probabilities; whoever wants to go on step by step asks the session.

    Raises:
        ManifestMismatch: a file is not the one of the manifest.
        UnsafeModel: the ONNX file refers to data outside itself.
        CpuClassMismatch: the variant was quantized for another kind of CPU.
        GpuClassMismatch: the variant was proven on another kind of GPU.
        EngineLoadError: ONNX Runtime refuses it, or it does not do what its manifest says.
    """

    def __init__(self, folder: Path, variant: Variant, *, threads: int | None = None) -> None:
        if variant.format != "onnx":
            raise EngineLoadError(f"variant {variant.name!r} is {variant.format}, not onnx; export it first")
        require_cpu_class(variant.runtime.cpu_class, f"variant {variant.name!r}")
        _check_gpu(variant)
        self.variant = variant
        self.decoder = _load_decoder(folder, variant)
        self.session = _new_session(folder, variant, threads or variant.runtime.intra_op_threads, self.decoder)
        self._bound = BoundSession(self.session, variant.inputs, variant.outputs) if _may_be_bound(variant) else None
        self.graph_outputs = tuple(spec.name for spec in variant.outputs)
        gaps = self._load_gaps(folder)
        self.inputs = tuple(spec.model_copy(update={"missing": spec.name in gaps}) for spec in variant.inputs)
        self.outputs = variant.outputs
        self._reader = load_text_reader(folder, variant)
        self.served = self.inputs if self._reader is None else (self._reader.spec,)
        self._text_inputs = {spec.name for spec in self.inputs if spec.datatype == "BYTES"}
        self._labelling = self._load_labels(folder)
        if self._labelling is not None:
            self.outputs = (*self.outputs, *self._labelling.outputs)

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run once and return the outputs asked for (all by default), in their order.

        Raises:
            EngineRunError: ONNX Runtime failed; its text names graph nodes, so it is for the log, not for clients.
        """
        wanted = tuple(outputs) if outputs is not None else tuple(spec.name for spec in self.outputs)
        from_graph = [name for name in wanted if name in self.graph_outputs]
        needs_labels = len(from_graph) < len(wanted)
        if needs_labels and self.graph_outputs[0] not in from_graph:
            from_graph.append(self.graph_outputs[0])
        inputs = dict(self.tokenized(inputs))
        words = inputs.pop(WORDS, None)
        feed = {name: _text(array) if name in self._text_inputs else array for name, array in inputs.items()}
        try:
            found = dict(zip(from_graph, self._ask(from_graph, feed), strict=True))
        except Exception as error:  # ONNX Runtime raises a family of classes without a common base
            raise EngineRunError(f"{type(error).__name__}: {error}") from error
        found = {name: _from_text(array) if array.dtype == object else array for name, array in found.items()}
        if needs_labels and self._labelling is not None:
            logits = found[self.graph_outputs[0]]
            if isinstance(self._labelling, WordLabelling):
                found |= self._labelling(logits, words)
            else:
                found |= self._labelling(logits)
        return {name: found[name] for name in wanted}

    def _ask(self, names: Sequence[str], feed: Mapping[str, Array]) -> Sequence[Array]:
        if self.decoder is None:
            answers: Sequence[Array] = (self._bound or self.session).run(names, feed)
            return answers
        return [
            score_tokens(lambda names, feeds: self.session.run(list(names), dict(feeds)), self.decoder, feed[TOKENS])
        ]

    def tokenized(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """The graph's inputs of what a client sends: ids in place of texts."""
        return inputs if self._reader is None else self._reader(inputs)

    def tokens_read(self, inputs: Mapping[str, Array]) -> int:
        """How many tokens of text are in the graph's inputs, filling left out; 0 for what reads no text."""
        return 0 if self._reader is None else self._reader.tokens_read(inputs)

    @property
    def filling(self) -> tuple[int, int] | None:
        """As :attr:`serving.text_reader.TextReader.filling`; None for what reads no text."""
        return None if self._reader is None else self._reader.filling

    def warm_up(self, runs: int = 2) -> None:
        """Run on zeros (free dimensions at 1), so that the first request does not pay for first-time work.

        Raises:
            EngineLoadError: the model fails even on that.
        """
        zeros = {spec.name: _zeros(spec) for spec in self.inputs}
        for _ in range(runs):
            try:
                self.run(zeros)
            except EngineRunError as error:
                raise EngineLoadError(
                    f"variant {self.variant.name!r} fails on an input of zeros: {error}; check the exported graph"
                ) from error

    def _load_labels(self, folder: Path) -> Labelling | WordLabelling | None:
        kinds = (ONE_OF_SEVERAL, SEVERAL_AT_ONCE, ONE_PER_WORD)
        named = [file for file in self.variant.files if file.path in kinds]
        if not named:
            return None
        entry = named[0]
        try:
            labels = json.loads(read_verified(folder, entry))
        except ValueError as error:
            raise EngineLoadError(f"{entry.path} of variant {self.variant.name!r} is not JSON: {error}") from error
        if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
            raise EngineLoadError(f"{entry.path} of variant {self.variant.name!r} must be a JSON list of strings")
        names, first = tuple(label.encode() for label in labels), self.outputs[0]
        labelling: Labelling | WordLabelling = Labelling(names, first, several=entry.path == SEVERAL_AT_ONCE)
        if by_word := entry.path == ONE_PER_WORD:
            labelling = WordLabelling(names, first)
        if not labelling.fits():
            raise EngineLoadError(
                f"variant {self.variant.name!r} has {len(labels)} labels, which need a first output FP32 "
                f"[-1, {len(labels)}{', -1' if by_word else ''}]; it is {first.datatype} {list(first.shape)}"
            )
        if taken := {spec.name for spec in labelling.outputs} & {spec.name for spec in self.outputs}:
            raise EngineLoadError(
                f"variant {self.variant.name!r} has labels, and outputs of its own called {sorted(taken)}; rename them"
            )
        return labelling

    def _load_gaps(self, folder: Path) -> list[str]:
        """Names of the inputs that may lack values."""
        entry = next((file for file in self.variant.files if file.path == MISSING_VALUES), None)
        if entry is None:
            return []
        try:
            names = json.loads(read_verified(folder, entry))
        except ValueError as error:
            raise EngineLoadError(f"{MISSING_VALUES} of variant {self.variant.name!r} is not JSON: {error}") from error
        if not isinstance(names, list):
            raise EngineLoadError(f"{MISSING_VALUES} of variant {self.variant.name!r} must be a JSON list of names")
        return names


def _load_decoder(folder: Path, variant: Variant) -> DecoderForm | None:
    entry = next((file for file in variant.files if file.path == DECODER), None)
    if entry is None:
        return None
    try:
        form = DecoderForm.from_json(read_verified(folder, entry))
    except ValueError as error:
        raise EngineLoadError(f"{DECODER} of variant {variant.name!r} cannot be read: {error}") from error
    if (variant.inputs, variant.outputs) != (form.inputs, form.outputs):
        raise EngineLoadError(
            f"variant {variant.name!r} continues text, from {list(form.inputs)} to {list(form.outputs)}; its manifest "
            f"says {list(variant.inputs)} and {list(variant.outputs)}"
        )
    return form


def _check_gpu(variant: Variant) -> None:
    """Before anything is read: whether this machine has the GPU that the variant was proven on."""
    runtime, what = variant.runtime, f"variant {variant.name!r}"
    if runs_on_gpu(runtime) and runtime.gpu_class is None:
        raise EngineLoadError(
            f"{what} is for {runtime.provider} and names no GPU that it was proven on: make it with targets: [cuda] "
            "or [tensorrt] on a machine that has one"
        )
    _require_provider(variant)
    require_gpu_class(runtime.gpu_class, what)
    if runtime.cuda_graph and not fixed_shapes((*variant.inputs, *variant.outputs)):
        raise EngineLoadError(
            f"{what} asks for a CUDA graph, which replays one shape, and has free dimensions: fix them, the batch too, "
            "or leave cuda_graph out"
        )


def _may_be_bound(variant: Variant) -> bool:
    return runs_on_gpu(variant.runtime) and fixed_shapes((*variant.inputs, *variant.outputs))


def _require_provider(variant: Variant) -> None:
    if variant.runtime.provider not in onnxruntime.get_available_providers():
        raise EngineLoadError(
            f"variant {variant.name!r} needs {variant.runtime.provider}; this onnxruntime offers "
            f"{onnxruntime.get_available_providers()}: install the build that has it, or deploy another variant"
        )


def _new_session(folder: Path, variant: Variant, threads: int, decoder: DecoderForm | None) -> Any:
    # The very bytes that were hashed are the ones that run: nothing is opened twice.
    data = read_verified(folder, variant.file(MODEL))
    check_onnx(data)
    return _session(data, variant, _options(variant.runtime, threads), _compiled(folder, variant.runtime), decoder)


def _compiled(folder: Path, runtime: RuntimeSpec) -> Path | None:
    """Folder for what TensorRT compiles, made if it is to be there; None: nothing is kept."""
    kept = engine_folder(folder, runtime.gpu_class) if runtime.provider == TENSORRT and runtime.gpu_class else None
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
    return kept


def _session(data: bytes, variant: Variant, options: Any, kept: Path | None, decoder: DecoderForm | None) -> Any:
    """A session that does what the manifest says; ``kept``: folder for compiled engines."""
    runtime = variant.runtime
    if runs_on_gpu(runtime):
        onnxruntime.preload_dlls()  # those of NVIDIA's wheels, which no loader finds by itself
    try:
        session = onnxruntime.InferenceSession(
            data,
            options,
            providers=[(runtime.provider, provider_options(runtime, kept))],
            disabled_optimizers=list(runtime.disabled_optimizers),
            enable_fallback=0,  # else ONNX Runtime tries again with other providers, also while it runs
        )
    except Exception as error:  # as above: no common base class
        raise EngineLoadError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load variant {variant.name!r}: {error}"
        ) from error
    if session.get_providers()[0] != runtime.provider:
        raise EngineLoadError(
            f"variant {variant.name!r} needs {runtime.provider}, which did not start: ONNX Runtime "
            f"{onnxruntime.__version__} found no CUDA, cuDNN or TensorRT that fits; install them"
        )
    if decoder is None:
        _compare("input", variant.inputs, session.get_inputs())
        _compare("output", variant.outputs, session.get_outputs())
    else:
        _compare_names("inputs", (TOKENS, SEEN, MOST, WANTED, *decoder.past), session.get_inputs())
        _compare_names("outputs", (LOGITS, *decoder.present), session.get_outputs())
        types, said = {i.type for i in session.get_inputs() if i.name in decoder.past}, _CACHE_TYPES[decoder.kv_cache]
        if types != {said}:
            raise EngineLoadError(
                f"the graph keeps keys and values as {', '.join(sorted(types))}, and {DECODER} tells of {said}: "
                "quantize it again"
            )
        answered = session.get_outputs()[0].shape[-1]
        if answered != decoder.vocabulary:
            raise EngineLoadError(
                f"the graph answers logits of {answered} tokens, and {DECODER} tells of {decoder.vocabulary}: export it"
                " again"
            )
    return session


def _options(runtime: RuntimeSpec, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = runtime.inter_op_threads
    options.graph_optimization_level = _LEVELS[runtime.graph_optimization]
    options.enable_cpu_mem_arena = runtime.arena
    options.log_severity_level = 3  # errors only; the rest tells node names of the client's model
    # Spinning threads burn a whole core after each request and gain nothing measurable (CEmbedding v0.9.1).
    spinning = "1" if runtime.spinning else "0"
    options.add_session_config_entry("session.intra_op.allow_spinning", spinning)
    options.add_session_config_entry("session.inter_op.allow_spinning", spinning)
    if runtime.provider != "CPUExecutionProvider":  # no silent fallback: it would serve, ten times slower
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


def _compare(kind: str, specs: Sequence[TensorSpec], found: Sequence[Any]) -> None:
    """The manifest must tell the truth about the graph: clients are checked against it.

    Outputs may be known more exactly on one side, since ONNX Runtime infers their shapes further.
    """
    says = [(s.name, s.datatype, tuple(s.shape)) for s in specs]
    has = [(f.name, ONNX.get(f.type, f.type), tuple(d if isinstance(d, int) else -1 for d in f.shape)) for f in found]
    fits = len(says) == len(has) and all(
        said[:2] == real[:2] and _same_shape(said[2], real[2], loose=kind == "output")
        for said, real in zip(says, has, strict=True)
    )
    if not fits:
        raise EngineLoadError(f"the manifest's {kind}s {says} are not the graph's {has}; export the variant again")


def _compare_names(kind: str, says: Sequence[str], found: Sequence[Any]) -> None:
    """What :mod:`model_registry.decoder_form` says of a decoder's file must be so."""
    has = [each.name for each in found]
    if list(says) != has:
        raise EngineLoadError(f"{DECODER} tells of the {kind} {list(says)}, and the graph has {has}; export it again")


def _same_shape(said: tuple[int, ...], real: tuple[int, ...], *, loose: bool) -> bool:
    if not loose:
        return said == real
    return not real or (len(said) == len(real) and all(-1 in (s, r) or s == r for s, r in zip(said, real, strict=True)))


def _zeros(spec: TensorSpec) -> Array:
    shape = tuple(max(dimension, 1) for dimension in spec.shape)
    if spec.datatype == "BYTES":
        return np.full(shape, b"", dtype=object)
    return np.zeros(shape, dtype=NUMPY[spec.datatype])


def _text(array: Array) -> Array:
    """BYTES as ONNX Runtime takes them: an object array of str."""
    out = np.empty(array.shape, dtype=object)
    out.ravel()[:] = [element.decode(errors="replace") for element in array.ravel()]
    return out


def _from_text(array: Array) -> Array:
    return bytes_array([str(element).encode(errors="replace") for element in array.ravel()], array.shape)
