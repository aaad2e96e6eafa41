"""Small networks around a recurrent layer of every kind, for the tests."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

CELLS: dict[str, Any] = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}
Takes = Literal["last", "mean", "states"]


class Reader(nn.Module):
    """Tokens [N, steps] to logits [N, 2]: from the last step, the mean of all, or the last hidden states."""

    def __init__(self, cell: str = "gru", *, takes: Takes = "mean", hidden: int = 12, **options: Any) -> None:
        super().__init__()
        self.takes = takes
        self.embed = nn.Embedding(12, 8)
        self.read: nn.RNNBase = CELLS[cell](8, hidden, **options)
        width = hidden * (2 if self.read.bidirectional else 1)
        self.dense = nn.Linear(width, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        steps, states = self.read(x if self.read.batch_first else x.transpose(0, 1))
        if self.takes == "states":
            hidden = states[0] if isinstance(states, tuple) else states
            read = torch.cat([hidden[-2], hidden[-1]], dim=1) if self.read.bidirectional else hidden[-1]
        else:
            time = 1 if self.read.batch_first else 0
            read = steps.mean(dim=time) if self.takes == "mean" else steps.select(time, -1)
        answer: Tensor = self.head(torch.relu(self.dense(read)))
        return answer


def tokens(rows: int = 4, steps: int = 7) -> Tensor:
    """Symbols [rows, steps], always the same."""
    return torch.randint(0, 12, (rows, steps), generator=torch.Generator().manual_seed(rows * steps))
