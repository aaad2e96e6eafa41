"""GRU, LSTM and RNN layers as one ONNX operator each, for sequences of any length.

torch.export asks each operator for the shape of its answer, and has that of a recurrent layer from running it step by
step: the number of steps becomes a constant (torch 2.13). Here the shape is said, and no step is run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from onnxscript import opset20 as op
from torch import Tensor

_aten = torch.ops.aten
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


@contextmanager
def recurrent_shapes() -> Iterator[None]:
    """Within it recurrent layers are traced as they are, for free dimensions too; only shapes may be asked of them.

    torch's own ``torch.export._patches`` registers its loops at the same place.
    """
    kernels: dict[Any, Callable[..., Any]] = {
        _aten.gru.input: _like_gru,
        _aten.lstm.input: _like_lstm,
        _aten.rnn_tanh.input: _like_gru,
        _aten.rnn_relu.input: _like_gru,
    }
    before = {operator: operator.py_kernels.get(_COMPOSITE) for operator in kernels}
    for operator, kernel in kernels.items():
        operator.py_kernels[_COMPOSITE] = kernel
    try:
        yield
    finally:
        for operator, kernel in before.items():
            del operator.py_kernels[_COMPOSITE]
            if kernel is not None:
                operator.py_kernels[_COMPOSITE] = kernel


def recurrent_translations() -> dict[Any, Callable[..., Any]]:
    """How torch.onnx writes them: its own translations (onnxscript 0.7) may fix the number of steps in a Reshape, and
    write a node per step of ``nn.RNN``."""
    return {
        _aten.gru.input: _translation("GRU", (1, 0, 2), {"linear_before_reset": 1}),
        _aten.lstm.input: _translation("LSTM", (0, 3, 1, 2), {}),
        _aten.rnn_tanh.input: _translation("RNN", (0,), {"activations": ["Tanh"]}),
        _aten.rnn_relu.input: _translation("RNN", (0,), {"activations": ["Relu"]}),
    }


def _like_gru(
    x: Tensor,
    hidden: Tensor,
    weights: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor]:
    """Of ``x`` [steps, N, inputs], or [N, steps, inputs]: what every step answers, and the last hidden states."""
    directions = 2 if bidirectional else 1
    return x.new_empty((*x.shape[:2], directions * hidden.shape[2])), hidden.new_empty(hidden.shape)


def _like_lstm(
    x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor], has_biases: bool, *others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    hidden, cell = states
    if hidden.shape[2] != cell.shape[2]:
        raise ValueError("nn.LSTM with proj_size has no ONNX operator; use a Linear layer after the LSTM")
    answers, last = _like_gru(x, hidden, weights, has_biases, *others)
    return answers, last, cell.new_empty(cell.shape)


def _translation(operator: str, gates: tuple[int, ...], attributes: dict[str, Any]) -> Callable[..., Any]:
    """The translation of a kind of layer; ``gates``: the places in torch's weights of what ONNX has in order."""

    def translate(
        x: Any,
        states: Any,
        weights: Sequence[Any],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Any, ...]:
        states = states if operator == "LSTM" else [states]
        directions, size = 2 if bidirectional else 1, states[0].shape[2]
        said = {name: value * directions if name == "activations" else value for name, value in attributes.items()}
        steps: Any = op.Transpose(x, perm=[1, 0, 2]) if batch_first else x
        last: list[tuple[Any, ...]] = []
        for first in range(0, num_layers * directions, directions):
            each = 4 if has_biases else 2
            rows = [weights[n * each : (n + 1) * each] for n in range(first, first + directions)]
            parts = [[_in_order(part, gates) for part in row] for row in rows]
            answers, *ends = getattr(op, operator)(
                steps,
                _stacked([row[0] for row in parts]),
                _stacked([row[1] for row in parts]),
                _stacked([op.Concat(row[2], row[3], axis=0) for row in parts]) if has_biases else None,
                None,  # all sequences of a batch are equally long
                *(op.Slice(state, _ints(first), _ints(first + directions), _ints(0)) for state in states),
                direction="bidirectional" if bidirectional else "forward",
                hidden_size=size,
                **said,
            )
            beside = op.Transpose(answers, perm=[0, 2, 1, 3])  # [steps, N, directions, hidden]
            steps = op.Reshape(beside, _ints(0, 0, directions * size))
            last.append(ends)
        joined = [op.Concat(*ends, axis=0) if len(ends) > 1 else ends[0] for ends in zip(*last, strict=True)]
        return (op.Transpose(steps, perm=[1, 0, 2]) if batch_first else steps, *joined[: len(states)])

    return translate


def _in_order(weights: Any, gates: tuple[int, ...]) -> Any:
    size = weights.shape[0] // len(gates)
    if len(gates) == 1:
        return weights
    parts = [op.Slice(weights, _ints(gate * size), _ints((gate + 1) * size), _ints(0)) for gate in gates]
    return op.Concat(*parts, axis=0)  # of constants, so folded


def _stacked(tensors: Sequence[Any]) -> Any:
    rows = [op.Unsqueeze(tensor, _ints(0)) for tensor in tensors]
    return op.Concat(*rows, axis=0) if len(rows) > 1 else rows[0]


def _ints(*values: int) -> Any:
    return op.Constant(value_ints=list(values))
