"""A torch model as one ONNX file, through torch.export."""

from __future__ import annotations

import inspect
import linecache
import logging
import re
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from torch._dynamo.exc import UserError
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from tasks.export.folded_scaling import fold_scaling
from tasks.export.raw_inputs import Inputs, RawInputs
from tasks.export.recurrent_layers import recurrent_shapes, recurrent_translations
from tasks.export.torch_onnx import share_operator_table
from tasks.onnx_models.onnx_graph import strip
from tasks.running.errors import ExportRefused
from tasks.torch_models.answer_text import describe_answer
from tasks.torch_models.model_blame import blame

OPSET = 20
"""What torch.onnx implements natively and the int8 tools know; opset 23 brings operators that quantizers do not."""
_LEAST = (None, 4, 8, 16)
"""Lengths from which free dimensions are tried."""


def export_onnx(
    module: RawInputs, inputs: Inputs, *, output: str, dynamic: dict[str, dict[int, str]] | None = None
) -> bytes:
    """Export to one stripped ONNX file with a free batch dimension.

    Args:
        module: in the state it is to have; switched to evaluation.
        inputs: real rows by name, at least three (torch.export takes sizes 0 and 1 for constants).
        output: name of the output tensor.
        dynamic: further free dimensions by input name, ``{"tokens": {1: "sequence"}}``.

    Raises:
        ExportRefused: the model answers no single tensor, cannot be traced, or fixes the batch size; names the
            module, the line, and what to change.
    """
    share_operator_table()
    module.eval()
    two = tuple(inputs[name][:2] for name in module.names)
    free = {name: {0: "batch"} | (dynamic or {}).get(name, {}) for name in module.names}
    with torch.no_grad(), _quiet():
        with _refusing(module, "cannot answer two rows of the validation data"):
            answer = module(*two)
        if not isinstance(answer, Tensor) or answer.ndim == 0 or len(answer) != 2:
            raise ExportRefused(
                f"{_class(module.model)} answered {describe_answer(answer)} for two rows; it must return one tensor "
                "[2, ...]: return that one from forward(), or wrap the model in workload.model()"
            )
        try:
            with _refusing(module, "cannot be traced by torch.export"), recurrent_shapes():
                program = _traced(module, two, free)
        except ExportRefused:
            _check_batch_is_free(module, inputs)  # the likelier cause has the better message
            raise
        with _refusing(module, "has an operation that torch.onnx cannot write"), recurrent_shapes():
            written = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                custom_translation_table=recurrent_translations(),
                input_names=list(module.names),
                output_names=[output],
                external_data=False,
                verify=False,
                verbose=False,
            )
    assert written is not None
    proto = onnx.ModelProto.FromString(written.model_proto.SerializeToString())
    found = next(o.version for o in proto.opset_import if o.domain == "")
    if found != OPSET:  # a failed down-conversion is only a warning in torch
        raise ExportRefused(f"torch.onnx wrote opset {found} for {_class(module.model)} instead of {OPSET}")
    _name_free_dimensions(proto, free)
    fold_scaling(proto)
    return strip(proto)


def _traced(
    module: RawInputs, rows: tuple[Tensor, ...], free: dict[str, dict[int, str]]
) -> torch.export.ExportedProgram:
    """The module as a graph of torch.export.

    That takes a length of 1 for a special case wherever it comes up, as half of a free length may be: then lengths from
    4, 8, ... on are asked for. What is written is the same for all of them.
    """
    labels = sorted({label for dims in free.values() for label in dims.values()})
    refusal: UserError | None = None
    for least in _LEAST:
        dims = {n: torch.export.Dim(n, min=least if least and n != "batch" else None) for n in labels}
        shapes = tuple({axis: dims[label] for axis, label in free[name].items()} for name in module.names)
        try:
            return torch.export.export(module, rows, dynamic_shapes=(shapes,))
        except UserError as error:
            refusal = refusal or error
            if labels == ["batch"] or "Constraints violated" not in str(error):
                break
    assert refusal is not None
    raise refusal


def _name_free_dimensions(proto: onnx.ModelProto, free: dict[str, dict[int, str]]) -> None:
    """Put the labels back: torch writes its own symbols (``s75``) where a dimension is computed with."""
    labels: dict[str, str] = {}
    for value in proto.graph.input:
        for axis, label in free[value.name].items():
            labels[value.type.tensor_type.shape.dim[axis].dim_param] = label
    for value in [*proto.graph.input, *proto.graph.output]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in labels:
                dim.dim_param = labels[dim.dim_param]


def _check_batch_is_free(module: RawInputs, inputs: Inputs) -> None:
    """A model that only takes the batch it was traced with also fails on three rows, and there with a good line."""
    with _refusing(module, "works for two rows but not for three: the batch size is fixed in the code"):
        module(*(inputs[name][:3] for name in module.names))


@contextmanager
def _refusing(module: RawInputs, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        where = blame(error, module.model) or _in_preprocessing(error, module) or _fixed_size(error)
        said = str(error).strip().partition("\n")[0][:300]
        raise ExportRefused(
            f"{_class(module.model)} {what}: {where}{type(error).__name__}: {said}. Write the forward pass with tensor "
            "operations on the shapes of its inputs: no Python branch on values, no .numpy(), .item() or fixed batch"
        ) from error


def _in_preprocessing(error: BaseException, module: RawInputs) -> str:
    """The line of the workload's preprocessing that the exception came through; '' if it did not pass there."""
    owner = getattr(module.preprocess, "__self__", None)
    user = getattr(owner, "user", owner)  # of a Workload, or of the user's object itself
    files = {inspect.getsourcefile(type(user))} if user is not None else {module.preprocess.__code__.co_filename}
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        if code.co_filename in files:
            text = linecache.getline(code.co_filename, line).strip()
            place = f"in the preprocessing at {Path(code.co_filename).name}:{line} `{text}`: "
    return place


def _fixed_size(error: BaseException) -> str:
    """Where the code made a number of a free dimension (``len(x)``, ``int(x.shape[0])``); '' if it did not.

    The exception does not say, but the frames it came through hold torch's record of its assumptions.
    """
    cause: BaseException | None = error
    while cause is not None:
        for frame, _ in traceback.walk_tb(cause.__traceback__):
            for value in tuple(frame.f_locals.values()):
                if isinstance(value, ShapeEnv):
                    fixed = [str(guard.sloc) for guard in value.guards if str(guard.expr).startswith("Eq(")]
                    places = [
                        found.group(1) for text in fixed if (found := re.search(r"([\w.-]+\.py:\d+ in \w+)", text))
                    ]
                    if places:
                        return f"at {places[0]} a size became a number (len(x)? take x.shape[0]): "
        cause = cause.__cause__ or cause.__context__
    return ""


def _class(model: nn.Module) -> str:
    return f"model {type(model).__name__}"


@contextmanager
def _quiet() -> Iterator[None]:
    """torch.onnx logs each optional library it lacks, copies its own deprecated tree specs, and warns of the list of
    weights that torch's recurrent layers keep."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg|torch")
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", message=r"The tensor attributes? .*_flat_weights")
            yield
    finally:
        logger.setLevel(level)
