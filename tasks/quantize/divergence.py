"""How far a decoder's distributions are from those of the file that it was made of."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from model_registry.decoder_form import LOGITS, DecoderForm

_KEPT = 1 << 26
"""Log-probabilities that are kept, 256 MiB of them, and no more rows: those of 1365 places with 49152 tokens."""


class Divergence:
    """From a reference, over the whole vocabulary: a thousand places say more than the texts' own tokens do of many.

    Args:
        file: the reference.
        tokens: real rows [N, length], of which the first are used, and one at least.
    """

    def __init__(self, file: bytes, form: DecoderForm, tokens: NDArray[np.int64]) -> None:
        self._form = form
        self._tokens = tokens[: max(1, _KEPT // (tokens.shape[1] * form.vocabulary))]
        self._wanted = list(self._asked(file))

    @property
    def places(self) -> int:
        """At which distributions are compared."""
        return int(self._tokens[:, 1:].size)

    def of(self, file: bytes) -> float:
        """KL(reference || file) in nats, the mean over all places. Keys and values of the file are floats."""
        apart = [
            float((np.exp(wanted) * (wanted - found)).sum(axis=1).mean())
            for wanted, found in zip(self._wanted, self._asked(file), strict=True)
        ]
        return float(np.mean(apart))

    def _asked(self, file: bytes) -> Iterator[NDArray[np.float32]]:
        """Log-probabilities [length - 1, vocabulary] of what follows each token but the last, by row."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        for row in self._tokens:
            ((logits,),) = session.run([LOGITS], self._form.feeds(row[None], wanted=len(row)))
            found = logits[:-1] - logits[:-1].max(axis=1, keepdims=True)
            found -= np.log(np.exp(found).sum(axis=1, keepdims=True))
            yield found
