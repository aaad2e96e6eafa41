"""Recurrent layers become one ONNX operator a layer, for sequences of any length."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from recurrent_nets import Reader, tokens
from torch import nn

from tasks.export.onnx_export import export_onnx
from tasks.export.raw_inputs import RawInputs
from tasks.running.errors import ExportRefused

pytestmark = pytest.mark.slow  # exports real networks

KINDS: list[dict[str, Any]] = [
    {"cell": "gru", "takes": "states", "batch_first": True, "bidirectional": True},
    {"cell": "gru", "takes": "mean", "num_layers": 2, "bidirectional": True, "dropout": 0.1},
    {"cell": "lstm", "takes": "states", "num_layers": 2, "batch_first": True, "bias": False},
    {"cell": "lstm", "takes": "mean", "bidirectional": True},
    {"cell": "rnn", "takes": "last", "num_layers": 2, "bidirectional": True, "batch_first": True},
    {"cell": "rnn", "takes": "states", "nonlinearity": "relu"},
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind['cell']}-{kind['takes']}")
def test_a_recurrent_layer_takes_sequences_of_any_length(kind: dict[str, Any]) -> None:
    model = Reader(**kind).eval()
    file = _exported(model, {1: "length"})

    graph = onnx.load_from_string(file).graph
    assert Counter(n.op_type for n in graph.node)[kind["cell"].upper()] == kind.get("num_layers", 1)
    session = onnxruntime.InferenceSession(file)
    for rows, steps in ((1, 1), (2, 7), (5, 30)):
        given = tokens(rows, steps)
        with torch.no_grad():
            np.testing.assert_allclose(
                session.run(None, {"tokens": given.numpy()})[0], model(given).numpy(), rtol=1e-4, atol=1e-5
            )


def test_the_weights_of_a_recurrent_layer_are_constants_of_the_file() -> None:
    graph = onnx.load_from_string(_exported(Reader("lstm", bidirectional=True).eval(), {})).graph
    (layer,) = (node for node in graph.node if node.op_type == "LSTM")
    constants = {i.name: list(i.dims) for i in graph.initializer}
    assert [constants[name] for name in layer.input[1:4]] == [[2, 48, 8], [2, 48, 12], [2, 96]]


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_a_projected_lstm_is_refused_by_name() -> None:
    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read = nn.LSTM(3, 8, proj_size=2, batch_first=True)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            steps: torch.Tensor = self.read(torch.nn.functional.one_hot(tokens % 3, 3).float())[0]
            return steps[:, -1]

    with pytest.raises(ExportRefused, match="proj_size has no ONNX operator"):
        _exported(Projected(), {1: "length"})


def _exported(model: nn.Module, dynamic: dict[int, str]) -> bytes:
    raw = RawInputs(model, lambda inputs: inputs, ("tokens",))
    return export_onnx(raw, {"tokens": tokens()}, output="logits", dynamic={"tokens": dynamic})
