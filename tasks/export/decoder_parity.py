"""The gate for decoders: the file must continue texts as the model does, in any steps and beside any others."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_registry.decoder_form import LOGITS, MOST, SEEN, TOKENS, WANTED, DecoderForm, score_tokens
from tasks.export.parity import Parity
from tasks.running.errors import ParityFailed
from tasks.workloads.causal_decoder import CausalDecoder

_FIRST = (7, 20)
"""Tokens that are asked about first."""
_STEPS = (1, 2, 5, 1)
"""Tokens that follow, step by step."""
_ROWS = 3

Cache = dict[str, NDArray[np.float32]]


def check_decoder_parity(
    model: CausalDecoder, file: bytes, form: DecoderForm, tokens: Tensor, *, tolerance: float
) -> tuple[Parity, ...]:
    """Compare scores of whole rows, logits step by step, and those of texts of several lengths in one batch.

    Args:
        tokens: real rows [N, length].
        tolerance: allowed absolute difference, for values up to 1; larger ones are allowed in proportion.

    Raises:
        ParityFailed: names what differs, by how much, and what was allowed.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    model.eval()
    few, found = tokens[:_ROWS], list[Parity]()

    def compare(what: str, batch: int, answer: NDArray[Any], wanted: Tensor) -> None:
        expected = wanted.cpu().numpy()
        difference = float(np.abs(answer - expected).max(initial=0.0))
        allowed = tolerance * max(1.0, float(np.abs(expected).max(initial=0.0)))
        if not difference <= allowed:  # so that NaN fails
            raise ParityFailed(
                f"{what} of the exported decoder differ from the model's by {difference:.3g}, allowed is "
                f"{allowed:.3g}; raise export.tolerance ({tolerance:g}) if the model is that sensitive to rounding",
                batch=batch,
                difference=repr(difference),
                allowed=allowed,
            )
        found.append(Parity(batch, difference, allowed))

    with torch.no_grad():
        scores = score_tokens(lambda names, feeds: session.run(list(names), dict(feeds)), form, few.numpy())
        compare("log-probabilities", len(few), scores, model(few))
        logits = model.logits(model.states(few))
    steps = _Steps(session, form)
    for first in _FIRST:
        at, cache = min(first, few.shape[1]), steps.nothing(1)
        answer, cache = steps(few[:1, :at].numpy(), [at], cache)
        compare(f"logits of the first {at} tokens", 1, answer, logits[:1, :at])
        for step in _STEPS:
            end = min(at + step, few.shape[1])
            if end > at:
                answer, cache = steps(few[:1, at:end].numpy(), [end], cache)
                compare(f"logits of {end - at} tokens after {at}", 1, answer, logits[:1, at:end])
            at = end
    lengths = [min(few.shape[1], length) for length in (9, 4, 6)][: len(few)]
    answer, _ = steps(few[:, : max(lengths)].numpy(), lengths, steps.nothing(len(few)))
    for row, length in enumerate(lengths):
        compare(f"logits of {length} tokens beside a longer text", len(few), answer[row, :length], logits[row, :length])
    return tuple(found)


class _Steps:
    """Asks the file for the logits of the tokens that come next."""

    def __init__(self, session: Any, form: DecoderForm) -> None:
        self._session, self._form = session, form

    def nothing(self, rows: int) -> Cache:
        """Keys and values of no token."""
        form = self._form
        return dict.fromkeys(form.past, np.zeros((rows, form.kv_heads, 0, form.head_size), np.float32))

    def __call__(self, tokens: NDArray[Any], seen: list[int], cache: Cache) -> tuple[NDArray[Any], Cache]:
        feeds = {
            TOKENS: tokens,
            SEEN: np.array(seen, np.int32) - 1,
            MOST: np.array(max(seen), np.int32),
            WANTED: np.array([tokens.shape[1]], np.int64),
            **cache,
        }
        logits, *present = self._session.run([LOGITS, *self._form.present], feeds)
        return logits, dict(zip(self._form.past, present, strict=True))
