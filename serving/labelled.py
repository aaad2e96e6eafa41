"""From logits to labels and probabilities, as the endpoint answers them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from model_registry.variant import TensorSpec
from serving.exceptions import EngineRunError
from serving.tensors import Array, bytes_array


@dataclass(frozen=True)
class Labelling:
    """Names for the first output of a model.

    Args:
        labels: of classes, or of several labels at once (``several``).
        logits: the output that they belong to: FP32 [N, labels], or one logit a row (FP32 [N] or [N, 1]) for two
            classes, above 0 for the second.
    """

    labels: tuple[bytes, ...]
    logits: TensorSpec
    several: bool = False

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What is answered besides the logits.

        Of classes ``label`` BYTES [N] and its ``probability`` FP32 [N]; of one logit also the ``probabilities`` of both
        classes, FP32 [N, 2]. Of several labels ``label`` BYTES [N, labels], empty text for those that a row has not,
        and ``probability`` FP32 [N, labels].
        """
        shape = (-1, len(self.labels)) if self.several else (-1,)
        both = (TensorSpec(name="probabilities", datatype="FP32", shape=(-1, 2)),) if self._single else ()
        return (
            TensorSpec(name="label", datatype="BYTES", shape=shape),
            TensorSpec(name="probability", datatype="FP32", shape=shape),
            *both,
        )

    def fits(self) -> bool:
        """Whether the output has a logit for each label, or one for two classes."""
        wide = len(self.logits.shape) == 2 and self.logits.shape[1] in (-1, len(self.labels))
        return self.logits.datatype == "FP32" and (wide or self._single)

    def __call__(self, logits: Array) -> dict[str, Array]:
        """Labels and probabilities by output name; what is not finite gets no label and NaN.

        Raises:
            EngineRunError: the logits are not as many as the labels.
        """
        if self._single and logits.size == len(logits):
            return self._of_one(logits.reshape(-1))
        if logits.ndim != 2 or logits.shape[1] != len(self.labels):
            raise EngineRunError(f"{len(self.labels)} labels for an output of shape {list(logits.shape)}")
        return self._of_several(logits) if self.several else self._of_classes(logits)

    @property
    def _single(self) -> bool:
        return not self.several and len(self.labels) == 2 and self.logits.shape in ((-1,), (-1, 1))

    def _of_classes(self, logits: Array) -> dict[str, Array]:
        """The winner and its share of the softmax."""
        with np.errstate(invalid="ignore", over="ignore"):
            shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
            probability = shifted.max(axis=1) / shifted.sum(axis=1)
        return self._named(logits.argmax(axis=1), probability)

    def _of_one(self, logit: Array) -> dict[str, Array]:
        """The sigmoid of the logit is the second class's probability."""
        second = _sigmoid(logit)
        both = np.stack([_sigmoid(-logit), second], axis=1)
        found = self._named((logit > 0).astype(np.int64), both.max(axis=1))
        return {**found, "probabilities": both}

    def _of_several(self, logits: Array) -> dict[str, Array]:
        names = np.array(self.labels, dtype=object)
        named = np.where(np.isfinite(logits) & (logits > 0), names, b"")
        return {"label": bytes_array(named.ravel().tolist(), logits.shape), "probability": _sigmoid(logits)}

    def _named(self, winners: Array, probability: Array) -> dict[str, Array]:
        pairs = zip(winners.tolist(), np.isfinite(probability).tolist(), strict=True)
        named = [self.labels[winner] if finite else b"" for winner, finite in pairs]
        return {"label": bytes_array(named, (len(named),)), "probability": probability.astype(np.float32)}


def _sigmoid(logits: Array) -> Array:
    """Of finite logits; NaN of others, which answer nothing."""
    with np.errstate(over="ignore", invalid="ignore"):
        found: Array = (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)
    return np.where(np.isfinite(logits), found, np.float32(np.nan))
