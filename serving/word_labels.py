"""From logits of each token to a tag for each word, as the endpoint answers them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from model_registry.variant import TensorSpec
from serving.exceptions import EngineRunError
from serving.tensors import Array, bytes_array


@dataclass(frozen=True)
class WordLabelling:
    """Names for the first output of a model that answers for each token.

    Args:
        labels: the tags. ``logits``: the output that they belong to, FP32 [N, tags, length].
    """

    labels: tuple[bytes, ...]
    logits: TensorSpec

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """``label`` BYTES and its ``probability`` FP32, both [N, length]: word by word from the first, then empty texts
        and zeros. They are as wide as the row has tokens, so that an answer does not depend on others' words."""
        shape = (-1, -1)
        return (
            TensorSpec(name="label", datatype="BYTES", shape=shape),
            TensorSpec(name="probability", datatype="FP32", shape=shape),
        )

    def fits(self) -> bool:
        """Whether the output has a logit for each tag and token."""
        shape = self.logits.shape
        return self.logits.datatype == "FP32" and len(shape) == 3 and shape[1] in (-1, len(self.labels))

    def __call__(self, logits: Array, words: Array | None = None) -> dict[str, Array]:
        """Tags and probabilities by output name; what is not finite gets no tag and NaN.

        Args:
            words: INT64 [N, length], the number of the word that each token begins, below 0 for all others. None, where
                ids were given in place of text: each token is a word.

        Raises:
            EngineRunError: the logits are not as many as the tags.
        """
        if logits.ndim != 3 or logits.shape[1] != len(self.labels):
            raise EngineRunError(f"{len(self.labels)} tags for an output of shape {list(logits.shape)}")
        rows, _, length = logits.shape
        with np.errstate(invalid="ignore", over="ignore"):
            shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
            sure = (shifted.max(axis=1) / shifted.sum(axis=1)).astype(np.float32)
        if words is None:
            words = np.broadcast_to(np.arange(length), (rows, length))
        names = np.array(self.labels, dtype=object)
        tags, found = np.full((rows, length), b"", dtype=object), np.zeros((rows, length), np.float32)
        row, token = np.nonzero((words >= 0) & (words < length))
        word = words[row, token]
        found[row, word] = sure[row, token]
        tags[row, word] = np.where(np.isfinite(sure), names[logits.argmax(axis=1)], b"")[row, token]
        return {"label": bytes_array(tags.ravel().tolist(), (rows, length)), "probability": found}
